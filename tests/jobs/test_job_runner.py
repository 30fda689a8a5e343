"""A job beside a server: the table is complete, whatever is broken, interrupted or cancelled."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import StoreError
from cifar_ray.inference.batch import classify_on_ray, job_runner
from cifar_ray.inference.batch.classify import BundleClassifier
from cifar_ray.inference.batch.job_runner import JobPictures, JobRunner
from cifar_ray.inference.batch.table import Part, classify_part
from cifar_ray.jobs.job_queue import JobQueue
from cifar_ray.jobs.job_record import Job
from tests.deployments.conftest import SaveTiny, make_picture, save_tiny

__all__ = ["save_tiny"]

PICTURES = 25
ROOT = Path(__file__).parents[2]


@pytest.fixture
def storage(tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and 25 files of which one is broken."""
    monkeypatch.setattr(job_runner, "PART_SIZE", 4)
    monkeypatch.setattr(job_runner, "_BEAT_S", 0.01)
    save_tiny(str(tmp_path))
    (tmp_path / "inputs/spring").mkdir(parents=True)
    for number in range(PICTURES):
        (tmp_path / f"inputs/spring/{number:02}.jpg").write_bytes(make_picture() if number != 7 else b"broken")
    return tmp_path


class RunnerHere(JobRunner):
    """Computes in this process instead of on Ray, and fails when it is told to."""

    def __init__(self, storage: Path, owner: str = "one") -> None:
        super().__init__(ServeConfig(storage=str(storage), precision="fp32", engine="torch"), owner)
        self.computed: list[int] = []
        self.on_part = lambda part: None

    def _compute(self, job: Job, parts: list[Part], folder: str, pictures: JobPictures) -> Iterator[dict[str, int]]:
        classifier = BundleClassifier(self._model_job(job, 1), pictures.read)
        for part in parts:
            self.on_part(part)
            self.computed.append(part.number)
            yield classify_part(classifier, Part(part.number, pictures.names(part.number)), folder)


def add(storage: Path, output: str = "spring.csv", **changes: Any) -> Job:
    return JobQueue(str(storage)).add(**{"source": "spring", "model": "pets@1", "by": "alice", "output": output, "top_k": 2} | changes)


def state(storage: Path, job: Job) -> Job:
    return JobQueue(str(storage)).get(job.id)


def files(storage: Path, output: str) -> list[str]:
    return [str(name) for name in pcsv.read_csv(storage / "predictions" / output)["file"].to_pylist()]


EVERYTHING = [f"spring/{number:02}.jpg" for number in range(PICTURES)]


def test_the_table_has_a_row_for_each_picture_and_an_error_for_a_broken_one(storage: Path) -> None:
    job = add(storage, "spring.parquet")
    RunnerHere(storage).run_next()
    done = state(storage, job)
    assert (done.state, done.pictures, done.done, done.broken, done.problem) == ("done", PICTURES, PICTURES, 1, "")
    rows = pq.read_table(storage / "predictions/spring.parquet").to_pylist()
    assert sorted(row["file"] for row in rows) == EVERYTHING
    [broken] = [row for row in rows if row["error"]]
    assert (broken["file"], broken["class_name"]) == ("spring/07.jpg", None)
    assert all(len(row["top_k"]) == 2 for row in rows if not row["error"])
    assert not list((storage / "jobs").glob("2*"))  # names and parts are gone


def test_a_job_that_was_interrupted_computes_only_what_is_missing(storage: Path) -> None:
    job, dying = add(storage), RunnerHere(storage)

    def die(part: Part) -> None:
        if part.number == 3:
            raise KeyboardInterrupt  # as a killed process: nothing is caught or written

    dying.on_part = die
    with pytest.raises(KeyboardInterrupt):
        dying.run_next()
    assert state(storage, job).state == "running"
    dying.release()
    after = RunnerHere(storage, "two")
    after.run_next()
    assert (dying.computed, after.computed) == ([0, 1, 2], [3, 4, 5, 6])
    assert sorted(files(storage, "spring.csv")) == EVERYTHING
    assert (state(storage, job).done, state(storage, job).broken) == (PICTURES, 1)


def test_pictures_that_come_later_do_not_mix_with_the_list(storage: Path) -> None:
    add(storage)
    runner = RunnerHere(storage)
    runner.on_part = lambda part: (storage / f"inputs/spring/new-{part.number}.jpg").write_bytes(b"x") and None
    runner.run_next()
    assert sorted(files(storage, "spring.csv")) == EVERYTHING


def test_a_cancelled_job_stops_and_leaves_nothing(storage: Path) -> None:
    job, runner = add(storage), RunnerHere(storage)

    def cancel(part: Part) -> None:
        if part.number == 1:
            JobQueue(str(storage)).cancel(job.id)
        if part.number > 1:
            time.sleep(0.1)  # ten heartbeats

    runner.on_part = cancel
    runner.run_next()
    assert state(storage, job).state == "cancelled"
    assert len(runner.computed) < 7
    assert not (storage / "predictions").exists()
    assert not list((storage / "jobs").glob("2*"))


def test_an_error_that_may_pass_keeps_the_parts(storage: Path) -> None:
    job, runner = add(storage), RunnerHere(storage)

    def fail(part: Part) -> None:
        if part.number == 2:
            raise StoreError(f"{storage} is away")

    runner.on_part = fail
    runner.run_next()
    waits = state(storage, job)
    assert (waits.state, waits.attempts, waits.problem) == ("queued", 1, "the storage is away")
    assert len(list((storage / waits.folder / "parts").glob("*.parquet"))) == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": "pets@9"}, "pets@9"),
        ({"source": "empty"}, "no pictures found"),
        ({"source": "../spring"}, "expected a relative path"),
    ],
)
def test_an_error_that_cannot_pass_fails_the_job_at_once(storage: Path, changes: dict[str, str], problem: str) -> None:
    (storage / "inputs/empty").mkdir()
    job = add(storage, **changes)
    RunnerHere(storage).run_next()
    assert state(storage, job).state == "failed"
    assert problem in state(storage, job).problem
    assert str(storage) not in state(storage, job).problem


def test_an_unexpected_error_tells_a_client_nothing(storage: Path) -> None:
    job, runner = add(storage), RunnerHere(storage)

    def fail(part: Part) -> None:
        raise RuntimeError("secret")

    runner.on_part = fail
    runner.run_next()
    assert state(storage, job).problem == "internal error; the server's log has the details"


def test_a_table_that_appeared_meanwhile_stays(storage: Path) -> None:
    job = add(storage)
    (storage / "predictions").mkdir()
    (storage / "predictions/spring.csv").write_text("kept")
    RunnerHere(storage).run_next()
    assert state(storage, job).state == "failed"
    assert (storage / "predictions/spring.csv").read_text() == "kept"


def test_a_crash_after_the_table_was_written_ends_well(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, runner = add(storage), RunnerHere(storage)
    with monkeypatch.context() as patch:
        patch.setattr(JobQueue, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runner.run_next()
    assert sorted(files(storage, "spring.csv")) == EVERYTHING
    again = RunnerHere(storage)
    again.run_next()
    assert (state(storage, job).state, again.computed) == ("done", [])
    assert sorted(files(storage, "spring.csv")) == EVERYTHING


def test_a_worker_gives_way_to_every_other_process_before_it_imports_torch() -> None:
    """In a process of its own, because it cannot be undone; threads of Ray that run already stay as they are."""
    code = """
import os, sys, threading
from cifar_ray.inference.batch.part_worker import PartWorker

def state():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0) == os.SCHED_IDLE

def in_thread(function):
    thread = threading.Thread(target=lambda: print(function()))
    thread.start()
    thread.join()

begun = threading.Event()
running = threading.Thread(target=lambda: begun.wait() and print(state()))
running.start()
in_thread(lambda: PartWorker(None, "", 1, None, "normal") and state())
in_thread(lambda: PartWorker(None, "", 1, None, "low") and state())
in_thread(lambda: PartWorker(None, "", 1, None, "idle") and state())
print(state())
in_thread(state)
begun.set()
running.join()
print("torch" in sys.modules)
"""
    before = (os.getpriority(os.PRIO_PROCESS, 0), False)
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\n")
    assert lines[:-1] == [str(one) for one in (before, (19, False), (19, True), (19, True), (19, True), before, False)]


def test_a_job_has_the_priority_and_the_share_of_the_settings(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(classify_on_ray, "classify_on_ray", lambda *arguments: given.append(arguments) or iter(()))
    config = ServeConfig(storage=str(storage), job_workers=2, cpus_per_job_worker=1.5, engine="torch")
    runner = JobRunner(config, "one")
    runner._compute(add(storage), [], "folder", None)
    [(model, _, _, plan, _, priority)] = given
    assert (plan.num_workers, plan.cpus, plan.use_gpu, plan.threads) == (2, 1.5, False, 1)
    assert (priority, model.may_use_gpu, model.decoding_threads) == ("idle", False, 1)


@pytest.mark.ray
def test_a_job_runs_on_ray(ray_cluster: None, storage: Path) -> None:
    """Two jobs in a row: the first one's workers leave no trace."""
    config = ServeConfig(storage=str(storage), precision="fp32", engine="torch", cpus_per_job_worker=0.3, job_priority="low")
    for output in ("a.parquet", "b.csv"):
        job = add(storage, output)
        JobRunner(config, "one").run_next()
        assert (state(storage, job).state, state(storage, job).done) == ("done", PICTURES), state(storage, job).problem
    assert sorted(files(storage, "b.csv")) == EVERYTHING

"""The queue of jobs: in order, one runner a job, nothing lost or done twice, whoever dies."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cifar_ray.errors import StoreError
from cifar_ray.jobs import job_queue
from cifar_ray.jobs.job_queue import JobQueue
from cifar_ray.jobs.job_record import Job, JobConflictError, JobLostError, QueueFullError, UnknownJobError


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 29, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> JobQueue:
    return JobQueue(str(tmp_path), clock=clock)


def add(queue: JobQueue, output: str = "a.csv") -> Job:
    return queue.add("spring", "pets@3", output, "alice")


def test_jobs_wait_in_order_and_survive_a_restart(queue: JobQueue, tmp_path: Path) -> None:
    first, second = add(queue, "a.csv"), add(queue, "b.csv")
    again = JobQueue(str(tmp_path))
    assert [job.id for job in again.all()] == [first.id, second.id]
    assert again.take("one").id == first.id
    assert again.take("one").id == first.id  # a server's own job comes first
    again.finish(first.id, "one", "done")
    assert again.take("one").id == second.id


def test_two_servers_never_have_the_same_job(queue: JobQueue) -> None:
    add(queue, "a.csv")
    add(queue, "b.csv")
    first, second = queue.take("one"), queue.take("two")
    assert first.id != second.id
    assert queue.take("three") is None


def test_the_job_of_a_server_that_died_is_taken_over_once(queue: JobQueue, clock: Clock) -> None:
    job = add(queue)
    queue.take("one")
    clock.sleep(job_queue.LEASE_S - 1)
    assert queue.take("two") is None
    queue.report(job.id, "one", done=5)
    clock.sleep(job_queue.LEASE_S - 1)
    assert queue.take("two") is None
    clock.sleep(2)
    assert queue.take("two").done == 5
    with pytest.raises(JobLostError):
        queue.report(job.id, "one", done=6)
    with pytest.raises(JobLostError):
        queue.finish(job.id, "one", "done")
    assert queue.take("three") is None


def test_a_server_that_stops_lets_others_go_on_at_once(queue: JobQueue) -> None:
    add(queue)
    queue.take("one")
    queue.release("one")
    assert queue.take("two") is not None


def test_a_cancelled_job_is_lost_to_its_runner_and_a_finished_one_stays(queue: JobQueue) -> None:
    waiting, running = add(queue, "a.csv"), add(queue, "b.csv")
    assert queue.cancel(waiting.id).state == "cancelled"
    assert queue.take("one").id == running.id
    assert queue.cancel(running.id).state == "cancelled"
    with pytest.raises(JobLostError):
        queue.report(running.id, "one")
    done = add(queue, "c.csv")
    queue.take("one")
    queue.finish(done.id, "one", "done")
    assert queue.cancel(done.id).state == "done"
    with pytest.raises(UnknownJobError):
        queue.cancel("20261129000000-00000000")


def test_an_error_that_may_pass_is_tried_again_with_growing_pauses_and_then_fails(queue: JobQueue, clock: Clock) -> None:
    job, pauses = add(queue), []
    for _ in range(job_queue.MAX_ATTEMPTS - 1):
        assert queue.take("one").id == job.id
        queue.retry_later(job.id, "one", "the storage is away")
        assert queue.take("one") is None
        pauses.append((queue.get(job.id).not_before - clock.now).total_seconds())
        clock.sleep(pauses[-1])
    assert pauses == [15, 30, 60, 120]
    queue.take("one")
    queue.retry_later(job.id, "one", "the storage is away")
    assert (queue.get(job.id).state, queue.get(job.id).problem) == ("failed", "the storage is away")


def test_a_job_that_waits_for_another_attempt_lets_others_pass(queue: JobQueue) -> None:
    first, second = add(queue, "a.csv"), add(queue, "b.csv")
    queue.take("one")
    queue.retry_later(first.id, "one", "x")
    assert queue.take("one").id == second.id


def test_a_table_belongs_to_one_job_and_is_never_replaced(queue: JobQueue, tmp_path: Path) -> None:
    job = add(queue)
    with pytest.raises(JobConflictError):
        add(queue)
    queue.cancel(job.id)
    add(queue)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/there.csv").write_text("kept")
    with pytest.raises(JobConflictError):
        add(queue, "there.csv")


def test_of_many_clients_at_once_one_gets_the_table(queue: JobQueue) -> None:
    won = []

    def start() -> None:
        with suppress(JobConflictError):
            won.append(add(queue).id)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [job.id for job in queue.all()] == won
    assert len(won) == 1


def test_the_queue_is_bounded(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_queue, "MAX_UNFINISHED", 3)
    monkeypatch.setattr(job_queue, "_MAX_FINISHED", 2)
    jobs = [add(queue, f"{number}.csv") for number in range(3)]
    with pytest.raises(QueueFullError):
        add(queue, "more.csv")
    for job in jobs:
        queue.cancel(job.id)
    newest = add(queue, "more.csv")
    assert [job.id for job in queue.all()] == [jobs[1].id, jobs[2].id, newest.id]


def test_what_finished_jobs_left_is_deleted(queue: JobQueue, tmp_path: Path) -> None:
    job, gone = add(queue, "a.csv"), add(queue, "b.csv")
    for one in (job, gone):
        (tmp_path / one.folder / "parts").mkdir(parents=True)
    queue.cancel(gone.id)
    queue.sweep()
    assert (tmp_path / job.folder).exists()
    assert not (tmp_path / gone.folder).exists()
    assert len(queue.all()) == 2


def test_a_damaged_queue_is_one_line(queue: JobQueue, tmp_path: Path) -> None:
    add(queue)
    (tmp_path / "jobs/queue.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        queue.all()

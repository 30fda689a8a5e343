"""Searches on the shared cluster of two CPUs, on thumbnails of digits: a trial takes a second."""

import signal
import time
from pathlib import Path

import pytest
import yaml

from cifar_ray import __main__ as console
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.recipes import digits
from cifar_ray.storage import FileTree
from cifar_ray.store import ModelStore
from cifar_ray.tuning.record import Record, Trial
from cifar_ray.tuning.search import run_search
from cifar_ray.tuning.search_job import SearchJob, prepare
from tests.tuning.conftest import report

TINY = {"image_size": 8, "epochs": 6, "precision": "fp32", "augmentation": {"flip": "none", "translate_px": 0}}


class Watcher:
    """Remembers what a search told; interrupts it where asked."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.interrupt_after = interrupt_after
        self.stopped_at: dict[int, float] = {}

    def on_message(self, text: str) -> None:
        pass

    def on_trial(self, record: Record, trial: Trial) -> None:
        if trial.status == "stopped":
            self.stopped_at.setdefault(trial.number, time.monotonic())
        if record.epochs_run == self.interrupt_after:
            self.interrupt_after = None
            signal.raise_signal(signal.SIGINT)

    def on_tick(self, record: Record) -> None:
        pass


def job_in(storage: Path, space: dict, **options: object) -> SearchJob:
    fixed = parse_config(TrainConfig, digits().model_dump() | TINY | {"storage": str(storage), "name": "one"})
    return prepare(fixed, SearchConfig(**{"num_samples": 6, "search": "grid", "grace_period": 1, "confirm": 0, **options}), space)


def search(storage: Path, watcher: Watcher, space: dict, **options: object) -> Record:
    job = job_in(storage, space, **options)
    record = job.open()
    run_search(job.fixed, job.search, job.space, record=record, files=job.files, folder=job.folder, listener=watcher)
    return record


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def command(storage: Path) -> list[str]:
    """A grid of one good trial, one that diverges and two hopeless ones."""
    space = storage / "space.yaml"
    space.write_text(yaml.safe_dump({"optimizer.lr": {"choice": [3e-3, 1e30, 2e-6, 1e-6]}}))
    flags = ["--dataset", "digits", "--image-size", "8", "--epochs", "4", "--precision", "fp32", "--storage", str(storage)]
    options = ["--space", str(space), "--search", "grid", "--num-samples", "4", "--grace-period", "1"]
    return ["tune", *flags, *options, "--name", "one"]


@pytest.fixture(scope="module")
def finished(ray_cluster: None, command: list[str], storage: Path) -> Record:
    assert console.main([*command, "--train-best"]) == 0
    record = Record.load(FileTree(str(storage), "tunings/one"))
    assert record is not None
    return record


@pytest.mark.ray
def test_asha_stops_trials_before_their_last_epoch_and_the_best_runs_to_its_end(finished: Record, storage: Path) -> None:
    able = [trial for trial in finished.trials if trial.status in ("finished", "stopped")]
    assert len(able) == 3
    assert sum(trial.status == "stopped" and trial.epochs_done < 4 for trial in able) >= 1
    assert sum(trial.epochs_done for trial in able) < 4 * len(able)
    best = finished.ranked()[0]
    assert (best.parameters["optimizer.lr"], best.status, best.epochs_done) == (3e-3, "finished", 4)
    assert finished.ended
    assert best.number in {repeat.number for repeat in finished.repeats}, "the winner was trained with another seed too"
    assert all((repeat.status, repeat.epochs_done) == ("finished", 4) for repeat in finished.repeats)
    assert len(finished.runs(best)) == 2
    assert finished.runs(best)[1].epochs[0]["train_loss"] != best.epochs[0]["train_loss"]
    left = {path.name for path in (storage / "tunings" / "one").iterdir()} - {".lock"}
    assert left == {"search.yaml", "data.sha256", "state.json", "trials.csv", "best.yaml", "report.html", "curves.png", "parallel.png"}


@pytest.mark.ray
def test_a_trial_that_diverges_is_marked_and_the_search_goes_on(finished: Record, storage: Path) -> None:
    (diverged,) = (trial for trial in finished.trials if trial.status == "diverged")
    assert diverged.parameters["optimizer.lr"] == 1e30
    assert "the loss is" in diverged.reason
    assert diverged.number < len(finished.trials)


@pytest.mark.ray
def test_train_best_trains_the_best_recipe_in_full_keeps_it_and_promotes_it(finished: Record, storage: Path) -> None:
    manifest = ModelStore(str(storage)).manifest("digits@production")
    assert manifest.train_config["optimizer"]["lr"] == finished.ranked()[0].parameters["optimizer.lr"]
    assert manifest.train_config["epochs"] == 4
    assert manifest.metrics["test_accuracy"] > 0.6
    assert manifest.train_config["name"].startswith("one-best-")


@pytest.mark.ray
def test_a_search_that_has_ended_is_not_begun_again_nor_mixed_with_another(
    finished: Record, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.main(command) == 2
    assert "search 'one' is complete" in capsys.readouterr().err
    assert console.main([*command, "--seed", "1"]) == 2
    assert "has other settings; choose another --name" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_search_goes_on_where_it_was_and_a_crashed_trial_does_not_end_it(ray_cluster: None, tmp_path: Path) -> None:
    space = {"batch_size": {"choice": [64, 5000, 128]}}
    options = {"scheduler": "none", "num_samples": 3, "max_concurrent": 1}
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Watcher(interrupt_after=9), space, **options)
    left = Record.load(FileTree(str(tmp_path), "tunings/one"))
    assert left is not None
    assert [(trial.status, trial.epochs_done) for trial in left.trials] == [("finished", 6), ("failed", 0), ("interrupted", 3)]
    assert left.trials[1].reason.startswith("batch_size: 5000 exceeds the 1458 training images")
    assert "DataError" in (tmp_path / "tunings" / "one" / "errors" / "trial-2.txt").read_text()
    record = search(tmp_path, Watcher(), space, **options)
    assert record.ended
    assert record.trials[:2] == left.trials[:2], "what had ended is kept as it was"
    assert (record.trials[2].status, record.trials[2].epochs_done) == ("finished", 6)
    assert record.trials[2].epochs[:3] == left.trials[2].epochs, "down to their seconds: these epochs were not run again"


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_stopped_trial_are_gone_within_seconds(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    job = job_in(tmp_path, {"optimizer.lr": {"choice": [3e-3, 1e-6]}}, num_samples=2, workers_per_trial=2)
    record = job.open()
    good = record.trial("good", {"optimizer.lr": 3e-3})  # ASHA is told of it, so the one that runs is stopped at the first rung
    good.status = "finished"
    for epoch in range(1, 7):
        good.add(report(epoch, 0.99))
    watcher = Watcher()
    run_search(job.fixed, job.search, job.space, record=record, files=job.files, folder=job.folder, listener=watcher)
    gone_s = time.monotonic() - watcher.stopped_at[2]  # the search returns when the cluster has all back, or after 15 s
    assert (record.trials[1].status, record.trials[1].epochs_done) == ("stopped", 1)
    groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    assert groups == []
    assert ray.available_resources()["CPU"] == 2.0
    assert gone_s < 12

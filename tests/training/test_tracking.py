"""What a run leaves in TensorBoard, and in MLflow behind a real server with SQLite."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar_ray import __main__ as console
from cifar_ray.config import TrainConfig
from cifar_ray.errors import ConfigError
from cifar_ray.store import load_model
from cifar_ray.training.reports import EpochReport
from cifar_ray.training.tracking import NullTracker, Several, create_tracker, epoch_metrics, flat

REPORT = EpochReport(1, 2.0, 0.4, 1.5, 0.5, 0.1, 3.0, 100.0, True, val_confusion=((3, 1), (2, 2)))


class Recorder(NullTracker):
    """Remembers calls, and fails at the one named."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[str] = []
        self.fails_at = fails_at

    def on_epoch(self, report: EpochReport) -> None:
        self._called("on_epoch")

    def close(self, *, finished: bool) -> None:
        self._called(f"close {finished}")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_at:
            raise OSError("connection lost")


def test_an_epoch_gives_figures_accuracy_of_each_class_and_the_state_of_the_machine() -> None:
    metrics = epoch_metrics(REPORT, ("cat", "dog"))
    assert (metrics["val_accuracy"], metrics["learning_rate"]) == (0.5, 0.1)
    assert (metrics["val_accuracy/cat"], metrics["val_accuracy/dog"]) == (0.75, 0.5)
    assert metrics["system/memory_used_bytes"] > 1e6
    without = EpochReport(1, 2.0, 0.4, None, None, 0.1, 3.0, 100.0, True)
    assert not [name for name in epoch_metrics(without, ("cat", "dog")) if name.startswith("val_")]


def test_a_tracker_that_fails_is_named_once_and_costs_neither_the_training_nor_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    broken, sound = Recorder(fails_at="on_epoch"), Recorder()
    tracker = Several({"mlflow": broken, "tensorboard": sound})
    for _ in range(3):
        tracker.on_epoch(REPORT)
    tracker.close(finished=True)
    assert broken.calls == ["on_epoch"]
    assert sound.calls == [*["on_epoch"] * 3, "close True"]
    assert capsys.readouterr().err == "--track mlflow: connection lost; training goes on without it\n"


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path) -> None:
    assert isinstance(create_tracker("", str(tmp_path)), NullTracker)
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_and_a_silent_server_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--track wandb: unknown; there are tensorboard, mlflow"):
        create_tracker("tensorboard,wandb", str(tmp_path))
    with pytest.raises(ConfigError, match="needs a storage on a local path"):
        create_tracker("tensorboard", "s3://bucket")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"no answer from http://127\.0\.0\.1:9"):
        create_tracker("mlflow", str(tmp_path))


def test_nested_settings_become_one_level() -> None:
    parameters = flat(TrainConfig().model_dump(mode="json"))
    assert (parameters["optimizer.lr"], parameters["epochs"], parameters["start"]) == ("0.24", "8", "None")


@pytest.fixture
def mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an MLflow server on SQLite, of this test alone."""
    pytest.importorskip("mlflow")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    places = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()  # noqa: S310
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline_s, "the server does not come up"
                time.sleep(0.1)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def scalars(folder: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Steps of each curve, and names of pictures, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}, events.Tags()["images"]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning")
def test_a_run_on_two_workers_is_logged_once_with_its_model(ray_cluster: None, mlflow_server: str, tmp_path: Path) -> None:
    options = ["--num-workers", "2", "--epochs", "2", "--batch-size", "256", "--storage", str(tmp_path / "storage"), "--name", "tracked"]
    assert console.main(["train", "--dataset", "digits", *options, "--track", "tensorboard,mlflow"]) == 0

    import mlflow

    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["model"]) == ("tracked", "FINISHED", "digits@1")
    assert run.data.params["optimizer.name"] == "adamw"
    for name in ("train_loss", "val_accuracy", "learning_rate", "val_accuracy/7", "system/load_1m"):
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, name)] == [1, 2], name
    bundle = load_model("digits@1", str(tmp_path / "storage"))
    assert run.data.metrics["final/test_accuracy"] == pytest.approx(bundle.manifest.metrics["test_accuracy"])
    there = client.download_artifacts(run.info.run_id, "", str(tmp_path))
    assert {"confusion.png", "curves.png", "config.yaml", "history.csv"} < set(os.listdir(there))  # noqa: PTH208
    assert load_model(f"{there}/model", "").manifest == bundle.manifest

    curves, pictures = scalars(tmp_path / "storage" / "tensorboard" / "tracked")
    assert curves["val_accuracy"] == [1, 2]
    assert "val_accuracy/7" in curves
    assert set(pictures) == {"confusion", "curves"}

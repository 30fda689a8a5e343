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

import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.config.documents import flatten
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError
from cifar_ray.store import load_model
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.records.results import EpochReport, TrainedRun, Weights
from cifar_ray.training.records.trackers import epoch_metrics
from cifar_ray.training.records.tracking import NullTracker, Several, create_tracker
from cifar_ray.training.save_model import save_model

# its job runners are five more processes, which tracking does without
SERVER_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
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
    assert capsys.readouterr().err == "--track mlflow: connection lost; training continues without it\n"


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path) -> None:
    assert isinstance(create_tracker("", str(tmp_path)), NullTracker)
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_and_a_silent_server_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--track wandb: unknown tracker\. Available: tensorboard, mlflow"):
        create_tracker("tensorboard,wandb", str(tmp_path))
    with pytest.raises(ConfigError, match="pass a --storage on a local path"):
        create_tracker("tensorboard", "s3://bucket")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"no response from http://127\.0\.0\.1:9"):
        create_tracker("mlflow", str(tmp_path))


def test_nested_settings_become_one_level() -> None:
    parameters = flatten(TrainConfig().model_dump(mode="json"))
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
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=os.environ | SERVER_ENVIRONMENT)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning")
def test_mlflow_gets_settings_curves_pictures_and_the_model(mlflow_server: str, stripes: DatasetSplits, tmp_path: Path) -> None:
    values = {
        "name": "tracked",
        "save_as": "mine",
        "model": "small_cnn",
        "epochs": 2,
        "batch_size": 60,
        "storage": str(tmp_path / "storage"),
    }
    config = parse_config(TrainConfig, values)
    tracker = create_tracker("mlflow", config.storage)
    tracker.on_start(config, stripes)
    reports: list[EpochReport] = []
    weights: Weights = {}

    def on_epoch(report: EpochReport, present: Weights) -> None:
        reports.append(report)
        weights.update({name: tensor.clone() for name, tensor in present.items()})
        tracker.on_epoch(report)

    result = fit(config, stripes, device=torch.device("cpu"), shard=Shard(), on_step=lambda *_: None, on_epoch=on_epoch)
    run = TrainedRun("tracked", "runs/tracked", result, reports, weights)
    kept = save_model(run, config, stripes)
    tracker.on_end(run, kept)
    tracker.close(finished=True)

    import mlflow

    client = mlflow.MlflowClient(mlflow_server)
    (logged,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (logged.info.run_name, logged.info.status, logged.data.tags["model"]) == ("tracked", "FINISHED", "mine@1")
    assert logged.data.params["optimizer.name"] == "muon"
    for name in ("train_loss", "val_accuracy", "learning_rate", "val_accuracy/plain", "system/load_1m"):
        assert [metric.step for metric in client.get_metric_history(logged.info.run_id, name)] == [1, 2], name
    assert logged.data.metrics["final/test_accuracy"] == pytest.approx(result.metrics["test_accuracy"])
    (tmp_path / "there").mkdir()
    there = Path(client.download_artifacts(logged.info.run_id, "", str(tmp_path / "there")))
    assert {"confusion.png", "curves.png", "config.yaml", "history.csv", "model"} == {path.name for path in there.iterdir()}
    assert load_model(str(there / "model"), "").manifest == kept.bundle.manifest

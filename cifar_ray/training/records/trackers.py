"""Trackers for TensorBoard and MLflow; each imports its package on demand."""

from __future__ import annotations

import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_ray.config import TrainConfig, to_yaml
from cifar_ray.config.documents import flatten
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import ConfigError, MissingDependencyError
from cifar_ray.metrics.accuracy import Evaluation
from cifar_ray.storage import FileTree
from cifar_ray.store.bundle import encode
from cifar_ray.training.records import curves, history
from cifar_ray.training.records.results import Confusion, EpochReport, SavedModel, TrainedRun

_ADDRESS_VARIABLE = "MLFLOW_TRACKING_URI"
_CONNECT_TIMEOUT_S = 5
_MAX_PARAM_LENGTH = 6000  # MLflow's own limit


class TensorBoardTracker:
    """Writes event files to `<storage>/tensorboard/<run>`; view them with `tensorboard --logdir <storage>/tensorboard`.

    Raises:
        MissingDependencyError: if TensorBoard is not installed.
        ConfigError: if the storage is not a local path: an object store cannot append to event files.
    """

    def __init__(self, storage: str) -> None:
        try:
            import tensorboard
        except ImportError:
            raise MissingDependencyError("tensorboard is not installed: pip install 'cifar-ray[tracking]'") from None
        del tensorboard
        if "://" in storage:
            raise ConfigError(f"--track tensorboard: cannot write to {storage}; pass a --storage on a local path, or --track mlflow")
        self._root = Path(storage, "tensorboard")
        self._class_names: Sequence[str] = ()
        self._title = ""
        self._writer: Any = None

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Implements `Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        assert config.name is not None  # noqa: S101
        self._class_names, self._title = splits.train.class_names, config.name
        self._writer = SummaryWriter(str(self._root / config.name))
        self._writer.add_text("config", f"```yaml\n{to_yaml(config)}```")

    def on_epoch(self, report: EpochReport) -> None:
        """Implements `Tracker`."""
        for name, value in epoch_metrics(report, self._class_names).items():
            self._writer.add_scalar(name, value, report.epoch)
        self._writer.flush()

    def on_end(self, run: TrainedRun, kept: SavedModel) -> None:
        """Log final figures, plots and the reference of the model."""
        for name, value in run.result.metrics.items():
            self._writer.add_scalar(f"final/{name}", value, run.result.best_epoch)
        for name, picture in _pictures(run, self._class_names, self._title).items():
            self._writer.add_image(name.removesuffix(".png"), _pixels(picture), run.result.best_epoch, dataformats="HWC")
        self._writer.add_text("model", f"{kept.bundle.reference}, promoted: {kept.promoted} ({kept.reason})")

    def close(self, *, finished: bool) -> None:
        """Implements `Tracker`."""
        if self._writer is not None:
            self._writer.close()


class MlflowTracker:
    """Logs to an experiment with the name of the model, at `$MLFLOW_TRACKING_URI`, else in `<storage>/mlflow.db`.

    Raises:
        MissingDependencyError: if MLflow is not installed.
        ConfigError: if the server does not respond, or if no address is set and the storage is not a local path.
    """

    def __init__(self, storage: str) -> None:
        # by default MLflow retries for minutes; a run must not wait for it
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would send usage reports
        try:
            import mlflow
        except ImportError:
            raise MissingDependencyError("mlflow is not installed: pip install 'cifar-ray[tracking]'") from None
        self._artifacts: str | None = None
        self._address = os.environ.get(_ADDRESS_VARIABLE, "")
        if not self._address:
            if "://" in storage:
                raise ConfigError(
                    f"--track mlflow: {storage} cannot contain a database; set {_ADDRESS_VARIABLE} to the address of an MLflow server"
                )
            Path(storage).mkdir(parents=True, exist_ok=True)
            self._address, self._artifacts = f"sqlite:///{storage}/mlflow.db", Path(storage, "mlflow").as_uri()
        _check_reachable(self._address)
        self._client = mlflow.MlflowClient(self._address)
        self._class_names: Sequence[str] = ()
        self._config: TrainConfig | None = None
        self._run_id = ""

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Create the run.

        Raises:
            ConfigError: if the server refuses the run.
        """
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._class_names, self._config = splits.train.class_names, config
        params = [Param(key, value[:_MAX_PARAM_LENGTH]) for key, value in flatten(config.model_dump(mode="json")).items()]
        try:
            experiment = self._experiment(config.save_as or splits.name)
            self._run_id = self._client.create_run(experiment, run_name=config.name).info.run_id
            for start in range(0, len(params), 100):
                self._client.log_batch(self._run_id, params=params[start : start + 100])
        except MlflowException as error:
            raise ConfigError(f"--track mlflow: {self._address} refused the run: {' '.join(str(error).split())[:200]}") from None

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=self._artifacts))

    def on_epoch(self, report: EpochReport) -> None:
        """Implements `Tracker`."""
        self._log(epoch_metrics(report, self._class_names), report.epoch)

    def on_end(self, run: TrainedRun, kept: SavedModel) -> None:
        """Log final figures, plots, config and the bundle."""
        assert self._config is not None  # noqa: S101
        self._log({f"final/{name}": value for name, value in run.result.metrics.items()}, run.result.best_epoch)
        self._client.set_tag(self._run_id, "model", kept.bundle.reference)
        self._client.set_tag(self._run_id, "promoted", str(kept.promoted))
        with tempfile.TemporaryDirectory() as folder:
            files = FileTree(folder, "")
            for name, data in _pictures(run, self._class_names, run.name).items():
                files.replace(name, data)
            files.replace("config.yaml", to_yaml(self._config).encode())
            files.replace("history.csv", history.to_csv(run.history))
            for name, data in encode(kept.bundle.manifest, kept.bundle.weights, kept.bundle.attachments).items():
                files.replace(f"model/{name}", data)
            self._client.log_artifacts(self._run_id, folder)

    def close(self, *, finished: bool) -> None:
        """Implements `Tracker`."""
        if self._run_id:
            self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")

    def _log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(re.sub(r"[^\w\-. /]", "_", name), value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)


def _check_reachable(address: str) -> None:
    """Fail fast if no server listens at the address."""
    if not address.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=_CONNECT_TIMEOUT_S).close()  # noqa: S310  (checked above)
    except urllib.error.HTTPError:
        return  # a server listens; creating the run shows whether it accepts us
    except OSError as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ConfigError(
            f"--track mlflow: no response from {address} ({reason}); start the MLflow server, or set {_ADDRESS_VARIABLE}"
        ) from None


def _pictures(run: TrainedRun, class_names: Sequence[str], title: str) -> dict[str, bytes]:
    """Learning curves, and a confusion matrix: on the test images, or without them of the best epoch on the validation images."""
    pictures = {"curves.png": curves.draw_curves(run.history, title)}
    kept = next((report.val_confusion for report in run.history if report.epoch == run.result.best_epoch), None)
    confusion, split = (run.result.test_confusion, "test") if run.result.test_confusion else (kept, "validation")
    if confusion:
        pictures["confusion.png"] = curves.draw_confusion(confusion, class_names, f"{title}, {split}")
    return pictures


def _pixels(picture: bytes) -> Any:
    import io

    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


def epoch_metrics(report: EpochReport, class_names: Sequence[str]) -> dict[str, float]:
    """Metrics of an epoch: its figures, the accuracy of each class, and load and memory of the driver's machine."""
    figures = {name: float(value) for name, value in report.figures().items() if value is not None and name not in ("epoch", "improved")}
    return figures | _per_class(report.val_confusion, class_names) | system_metrics()


def system_metrics() -> dict[str, float]:
    """Load (1-minute average) and used memory, in bytes, of this machine and of each GPU."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    used_bytes = (os.sysconf("SC_PHYS_PAGES") - os.sysconf("SC_AVPHYS_PAGES")) * page_bytes
    found = {"system/load_1m": os.getloadavg()[0], "system/memory_used_bytes": float(used_bytes)}
    import torch

    for number in range(torch.cuda.device_count()):
        free_bytes, total_bytes = torch.cuda.mem_get_info(number)
        found[f"system/gpu{number}_memory_used_bytes"] = float(total_bytes - free_bytes)
    return found


def _per_class(confusion: Confusion | None, class_names: Sequence[str]) -> dict[str, float]:
    if confusion is None:
        return {}
    import numpy as np

    shares = Evaluation(0.0, np.array(confusion)).per_class_accuracy()
    return {f"val_accuracy/{name}": float(share) for name, share in zip(class_names, shares, strict=True) if not np.isnan(share)}

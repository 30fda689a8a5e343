"""Experiment tracking: what a run tells TensorBoard or MLflow, and when.

All of it happens on the driver, which hears of each epoch once, so a run is logged once however many workers and nodes it has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import ConfigError
from cifar_ray.metrics.accuracy import Evaluation
from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import Confusion, EpochReport

if TYPE_CHECKING:
    from cifar_ray.training.on_ray.ray_trainer import TrainedRun
    from cifar_ray.training.save_model import Kept


class Tracker(Protocol):
    """Remembers a run somewhere. Calls come in this order, `on_epoch` from another thread than the rest."""

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Training is about to begin."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch ended."""

    def on_end(self, run: TrainedRun, kept: Kept) -> None:
        """The model is in the store."""

    def close(self, *, finished: bool) -> None:
        """Nothing more comes; `finished` is false after an error or Ctrl-C."""


class NullTracker:
    """Remembers nothing."""

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Nothing."""

    def on_epoch(self, report: EpochReport) -> None:
        """Nothing."""

    def on_end(self, run: TrainedRun, kept: Kept) -> None:
        """Nothing."""

    def close(self, *, finished: bool) -> None:
        """Nothing."""


class Several:
    """Tells several trackers. One that fails while training goes on is said so once and left out: it costs no epoch."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Raises what a tracker raises: nothing is lost yet, and a wrong address should be known now."""
        for tracker in self._trackers.values():
            tracker.on_start(config, splits)

    def on_epoch(self, report: EpochReport) -> None:
        """As the protocol says."""
        self._tell(lambda tracker: tracker.on_epoch(report))

    def on_end(self, run: TrainedRun, kept: Kept) -> None:
        """As the protocol says."""
        self._tell(lambda tracker: tracker.on_end(run, kept))

    def close(self, *, finished: bool) -> None:
        """As the protocol says."""
        self._tell(lambda tracker: tracker.close(finished=finished))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # each library fails in its own ways, and none of them is worth a training
                del self._trackers[name]
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                print(f"--track {name}: {reason}; training goes on without it", file=sys.stderr)


def create_tracker(names: str, storage: str) -> Tracker:
    """The trackers that a user names.

    Args:
        names: `tensorboard`, `mlflow`, or both with a comma; empty for none.
        storage: where those that write files put them.

    Raises:
        ConfigError: for an unknown name.
        MissingDependencyError: if its package is not installed.
    """
    from cifar_ray.training.records.trackers import MlflowTracker, TensorBoardTracker

    known: dict[str, Callable[[str], Tracker]] = {"tensorboard": TensorBoardTracker, "mlflow": MlflowTracker}
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--track {name}: unknown; there are {', '.join(known)}")
    return Several({name: known[name](storage) for name in chosen}) if chosen else NullTracker()


@dataclass(frozen=True)
class TrackedProgress:
    """Passes on what happens to both the terminal and a tracker."""

    shown: Progress
    tracker: Tracker

    def on_message(self, text: str) -> None:
        """For the terminal."""
        self.shown.on_message(text)

    def on_step(self, epoch: int, steps_done: int, steps_per_epoch: int) -> None:
        """For the terminal."""
        self.shown.on_step(epoch, steps_done, steps_per_epoch)

    def on_epoch(self, report: EpochReport) -> None:
        """For both."""
        self.shown.on_epoch(report)
        self.tracker.on_epoch(report)

    def close(self) -> None:
        """For the terminal; a tracker is closed by whoever made it."""
        self.shown.close()


def epoch_metrics(report: EpochReport, class_names: Sequence[str]) -> dict[str, float]:
    """What is worth a curve: figures of the epoch, accuracy of each class, and the state of the driver's machine."""
    figures = {name: float(value) for name, value in report.figures().items() if value is not None and name not in ("epoch", "improved")}
    return figures | _per_class(report.val_confusion, class_names) | system_metrics()


def system_metrics() -> dict[str, float]:
    """Load and memory of this machine: processes that want to run (1-minute mean), and bytes in use."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    used_bytes = (os.sysconf("SC_PHYS_PAGES") - os.sysconf("SC_AVPHYS_PAGES")) * page_bytes
    found = {"system/load_1m": os.getloadavg()[0], "system/memory_used_bytes": float(used_bytes)}
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


def flat(values: dict[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of `a.b: text`."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found

"""Experiment tracking with TensorBoard and MLflow.

The driver logs the run: it receives each epoch once, so a run is logged once for any number of workers and nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import ConfigError
from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import EpochReport, SavedModel, TrainedRun


class Tracker(Protocol):
    """Logs a run. The methods are called in this order; `on_epoch` is called from another thread."""

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Training starts."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch ended."""

    def on_end(self, run: TrainedRun, kept: SavedModel) -> None:
        """The model was saved to the store."""

    def close(self, *, finished: bool) -> None:
        """No calls follow; `finished` is false after an error or Ctrl-C."""


class NullTracker:
    """Logs nothing."""

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Do nothing."""

    def on_epoch(self, report: EpochReport) -> None:
        """Do nothing."""

    def on_end(self, run: TrainedRun, kept: SavedModel) -> None:
        """Do nothing."""

    def close(self, *, finished: bool) -> None:
        """Do nothing."""


class Several:
    """Logs to several trackers. If a tracker fails during training, it prints one message and continues without that tracker."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Start all trackers. An error here ends the job, because no work is lost yet and the user can correct the address."""
        for tracker in self._trackers.values():
            tracker.on_start(config, splits)

    def on_epoch(self, report: EpochReport) -> None:
        """Implements `Tracker`."""
        self._call_each(lambda tracker: tracker.on_epoch(report))

    def on_end(self, run: TrainedRun, kept: SavedModel) -> None:
        """Implements `Tracker`."""
        self._call_each(lambda tracker: tracker.on_end(run, kept))

    def close(self, *, finished: bool) -> None:
        """Implements `Tracker`."""
        self._call_each(lambda tracker: tracker.close(finished=finished))

    def _call_each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # no error of a tracker may end a training
                del self._trackers[name]
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                print(f"--track {name}: {reason}; training continues without it", file=sys.stderr)


def create_tracker(names: str, storage: str) -> Tracker:
    """Create the trackers that a user names.

    Args:
        names: `tensorboard`, `mlflow`, or both with a comma; empty for none.
        storage: storage for trackers that write files.

    Raises:
        ConfigError: for an unknown name.
        MissingDependencyError: if the package of a tracker is not installed.
    """
    from cifar_ray.training.records.trackers import MlflowTracker, TensorBoardTracker

    known: dict[str, Callable[[str], Tracker]] = {"tensorboard": TensorBoardTracker, "mlflow": MlflowTracker}
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--track {name}: unknown tracker. Available: {', '.join(known)}")
    return Several({name: known[name](storage) for name in chosen}) if chosen else NullTracker()


@dataclass(frozen=True)
class TrackedProgress:
    """Passes progress to the terminal, and each epoch also to a tracker."""

    shown: Progress
    tracker: Tracker

    def on_message(self, text: str) -> None:
        """Show on the terminal."""
        self.shown.on_message(text)

    def on_plan(self, epochs: int) -> None:
        """Show on the terminal."""
        self.shown.on_plan(epochs)

    def on_task(self, name: str, total: int) -> Callable[[int], None]:
        """Show on the terminal."""
        return self.shown.on_task(name, total)

    def on_step(self, epoch: int, steps_done: int, steps_per_epoch: int) -> None:
        """Show on the terminal."""
        self.shown.on_step(epoch, steps_done, steps_per_epoch)

    def on_epoch(self, report: EpochReport) -> None:
        """Show on the terminal and log."""
        self.shown.on_epoch(report)
        self.tracker.on_epoch(report)

    def close(self) -> None:
        """Close the terminal; the tracker is closed after the model is saved."""
        self.shown.close()

"""Experiment tracking: what a run tells TensorBoard or MLflow, and when.

All of it happens on the driver, which hears of each epoch once, so a run is logged once however many workers and nodes it has.
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
    """Remembers a run somewhere. Calls come in this order, `on_epoch` from another thread than the rest."""

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Training is about to begin."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch ended."""

    def on_end(self, run: TrainedRun, kept: SavedModel) -> None:
        """The model is in the store."""

    def close(self, *, finished: bool) -> None:
        """Nothing more comes; `finished` is false after an error or Ctrl-C."""


class NullTracker:
    """Remembers nothing."""

    def on_start(self, config: TrainConfig, splits: TrainingSplits) -> None:
        """Nothing."""

    def on_epoch(self, report: EpochReport) -> None:
        """Nothing."""

    def on_end(self, run: TrainedRun, kept: SavedModel) -> None:
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

    def on_end(self, run: TrainedRun, kept: SavedModel) -> None:
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
                print(f"--track {name}: {reason}; training continues without it", file=sys.stderr)


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
            raise ConfigError(f"--track {name}: unknown. Available: {', '.join(known)}")
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
        """For the terminal; the tracker is closed when the model is saved."""
        self.shown.close()

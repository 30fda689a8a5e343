"""Show the progress of a training run on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing

from cifar_ray.cli.output.liveness import format_seconds, is_terminal
from cifar_ray.cli.output.terminal import ProgressDisplay
from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.training import job
from cifar_ray.training.records.results import EpochReport

_ESTIMATE_AFTER_S, _WORTH_SAYING_S = 4.0, 30.0


class ConsoleProgress:
    """Implements `Progress`: prints a line per epoch, and on a terminal draws a bar with images/s and the time left.

    Args:
        epochs: number of epochs of the run.
        images_per_epoch: number of training images.
    """

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self._epochs = epochs
        self._images_per_epoch = images_per_epoch
        self._display = ProgressDisplay()
        self._started = False
        self._timed: tuple[float, float] | None = None  # time and position of the first step, until the estimate is printed
        self._estimated = False

    def on_message(self, text: str) -> None:
        """Print a line above the bar."""
        self._display.write(text)

    def on_plan(self, epochs: int) -> None:
        """Set another number of epochs."""
        self._epochs = epochs

    def on_task(self, name: str, total: int) -> Callable[[int], None]:
        """Start a bar, or only status lines if `total` is 0; return a function that takes the number of newly finished images."""
        return self._display.start(name, total)

    def on_step(self, epoch: int, steps_done: int, steps_per_epoch: int) -> None:
        """Move the bar."""
        name = f"epoch {epoch}/{self._epochs}"
        if not self._started:
            self._display.start(name, self._epochs * self._images_per_epoch)
            self._started = True
        position = epoch - 1 + steps_done / steps_per_epoch
        self._display.update(name, int(position * self._images_per_epoch))
        if not self._estimated:
            self._estimate(time.monotonic(), position)

    def _estimate(self, now_s: float, position: float) -> None:
        """Print an estimate of the time left, once; the first step does not count, because it allocates memory."""
        if self._timed is None:
            self._timed = now_s, position
            return
        began_s, first = self._timed
        if now_s - began_s < _ESTIMATE_AFTER_S or position <= first:
            return
        self._estimated = True
        left_s = (self._epochs - position) * (now_s - began_s) / (position - first)
        if left_s > _WORTH_SAYING_S:
            stop = "Ctrl-C saves and stops, and" if is_terminal(sys.stderr) else "if it is stopped,"  # Ctrl-C does not reach a job
            self.on_message(f"about {format_seconds(left_s)} left; {stop} the run can be resumed")

    def on_epoch(self, report: EpochReport) -> None:
        """Print the line of an epoch."""
        figure = "acc" if report.val_map is None else "mAP"
        training = "" if report.train_accuracy is None else f" acc {100 * report.train_accuracy:6.2f} %"
        validation = "" if report.val_score is None else f"  val loss {report.val_loss:.3f} {figure} {100 * report.val_score:6.2f} %"
        best = "  best" if report.improved and report.val_score is not None else ""
        self.on_message(
            f"epoch {report.epoch:>{len(str(self._epochs))}}/{self._epochs}"
            f"  train loss {report.train_loss:.3f}{training}{validation}"
            f"  {report.images_per_s:,.0f} img/s  {report.seconds:.1f} s{best}"
        )
        if report.epoch >= self._epochs:
            self._display.start("evaluating the best weights", 0)

    def close(self) -> None:
        """End the bar; a second call does nothing."""
        self._display.close()


def train_with_progress(config: TrainConfig, splits: TrainingSplits, track: str, resume: str = "auto") -> job.JobResult:
    """Run a training job and show its progress. Arguments and errors are those of `job.run`."""
    with closing(ConsoleProgress(config.epochs, len(splits.train))) as progress:
        return job.run(config, splits, progress, track, resume)

"""Shows the progress of a training run on stderr."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from cifar_ray.cli.output.terminal import ProgressDisplay
from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.training import job
from cifar_ray.training.records.results import EpochReport


class ConsoleProgress:
    """Prints a line per epoch; on a terminal also draws a bar with images/s and the time left. A `Progress`.

    Args:
        epochs: number of epochs of the run.
        images_per_epoch: number of training images.
    """

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self._epochs = epochs
        self._images_per_epoch = images_per_epoch
        self._display = ProgressDisplay()
        self._started = False

    def on_message(self, text: str) -> None:
        """Prints a line above the bar."""
        self._display.write(text)

    def on_plan(self, epochs: int) -> None:
        """Takes another number of epochs."""
        self._epochs = epochs

    def on_task(self, name: str, total: int) -> Callable[[int], None]:
        """Starts a bar."""
        return self._display.start(name, total)

    def on_step(self, epoch: int, steps_done: int, steps_per_epoch: int) -> None:
        """Moves the bar."""
        name = f"epoch {epoch}/{self._epochs}"
        if not self._started:
            self._display.start(name, self._epochs * self._images_per_epoch)
            self._started = True
        self._display.update(name, int((epoch - 1 + steps_done / steps_per_epoch) * self._images_per_epoch))

    def on_epoch(self, report: EpochReport) -> None:
        """Prints the line of an epoch."""
        validation = "" if report.val_accuracy is None else f"  val loss {report.val_loss:.3f} acc {report.val_accuracy:7.2%}"
        best = "  best" if report.improved and report.val_accuracy is not None else ""
        self.on_message(
            f"epoch {report.epoch:>{len(str(self._epochs))}}/{self._epochs}"
            f"  train loss {report.train_loss:.3f} acc {report.train_accuracy:7.2%}{validation}"
            f"  {report.images_per_s:,.0f} img/s  {report.seconds:.1f} s{best}"
        )

    def close(self) -> None:
        """Ends the bar; closing it again changes nothing."""
        self._display.close()


def train_with_progress(config: TrainConfig, splits: TrainingSplits, track: str, resume: str = "auto") -> job.JobResult:
    """Runs a training job and shows its progress. Arguments and errors are those of `job.run`."""
    with closing(ConsoleProgress(config.epochs, len(splits.train))) as progress:
        return job.run(config, splits, progress, track, resume)

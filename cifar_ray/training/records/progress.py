"""What a person sees while a run goes on."""

from __future__ import annotations

import sys
from typing import NoReturn, Protocol

from tqdm import tqdm

from cifar_ray.training.records.results import EpochReport


class Progress(Protocol):
    """Listens to a run, on the driver."""

    def on_message(self, text: str) -> None:
        """Something worth a line happened."""

    def on_step(self, epoch: int, steps_done: int, steps_per_epoch: int) -> None:
        """Some steps of epoch `epoch` (from 1) are done; not called for every step."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch ended."""

    def close(self) -> None:
        """Nothing more comes; may be called twice."""


class ConsoleProgress:
    """A bar by step with images/s and time left, and a line an epoch; only the lines where stderr is no terminal.

    Args:
        epochs: epochs in all.
        images_per_epoch: training images.
    """

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self._epochs = epochs
        self._images_per_epoch = images_per_epoch
        self._bar: tqdm[NoReturn] | None = None

    def on_message(self, text: str) -> None:
        """Prints the line above the bar."""
        tqdm.write(text, file=sys.stderr)

    def on_step(self, epoch: int, steps_done: int, steps_per_epoch: int) -> None:
        """Moves the bar."""
        bar = self._bar = self._bar or self._start_bar()
        bar.set_description(f"epoch {epoch}/{self._epochs}", refresh=False)
        bar.update(int((epoch - 1 + steps_done / steps_per_epoch) * self._images_per_epoch) - bar.n)

    def _start_bar(self) -> tqdm[NoReturn]:
        total = self._epochs * self._images_per_epoch
        return tqdm(total=total, unit="img", unit_scale=True, file=sys.stderr, disable=None, dynamic_ncols=True, smoothing=0.1)

    def on_epoch(self, report: EpochReport) -> None:
        """Prints the epoch's line."""
        validation = "" if report.val_accuracy is None else f"  val loss {report.val_loss:.3f} acc {report.val_accuracy:7.2%}"
        best = "  best" if report.improved and report.val_accuracy is not None else ""
        self.on_message(
            f"epoch {report.epoch:>{len(str(self._epochs))}}/{self._epochs}"
            f"  train loss {report.train_loss:.3f} acc {report.train_accuracy:7.2%}{validation}"
            f"  {report.images_per_s:,.0f} img/s  {report.seconds:.1f} s{best}"
        )

    def close(self) -> None:
        """Leaves the terminal clean."""
        if self._bar is not None:
            self._bar.close()

"""The protocol through which a run reports its progress on the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cifar_ray.training.records.results import EpochReport


class Progress(Protocol):
    """Receives the progress of a run, in the process that started it."""

    def on_message(self, text: str) -> None:
        """Show a line of text."""

    def on_plan(self, epochs: int) -> None:
        """Training will take `epochs` epochs; called only if the number differs from the config."""

    def on_task(self, name: str, total: int) -> Callable[[int], None]:
        """A task of `total` images begins; 0 for a task that is not counted.

        Returns:
            A function that takes the number of newly finished images.
        """

    def on_step(self, epoch: int, steps_done: int, steps_per_epoch: int) -> None:
        """`steps_done` steps of epoch `epoch` (from 1) are done; not called for every step."""

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch ended."""

    def close(self) -> None:
        """No progress follows; may be called more than once."""

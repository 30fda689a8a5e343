"""What a driver hears of its run: epochs, workers that were lost, and workers that came or went with the cluster."""

from __future__ import annotations

from typing import Any

from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import EpochReport


class RunLog:
    """Takes rank 0's and the controller's messages.

    Args:
        progress: told of them.

    Attributes:
        reports: of each epoch, those before this process began included.
        repeated_steps: how many had been done, and were done again; a few more may have been, that were not heard of.
        workers: epoch and step, counted from 1, at which workers began, and how many there were.
        waits: whether there are no workers because the cluster has no room for them now.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._reached = self._steps = self._resizes = 0
        self._on_purpose = False
        self.reports: list[EpochReport] = []
        self.repeated_steps = 0
        self.workers: list[tuple[int, int, int]] = []
        self.waits = False

    @property
    def restarts(self) -> int:
        """How often workers began anew because some were lost."""
        return max(0, len(self.workers) - 1 - self._resizes)

    def handle(self, kind: str, content: Any) -> None:
        """Takes a message."""
        if kind == "step":
            epoch, done, self._steps = content
            self._reached = (epoch - 1) * self._steps + done
            self._progress.on_step(*content)
        elif kind == "epoch":
            self.reports = [*self.reports[: content.epoch - 1], content]
            self._progress.on_epoch(content)
        elif kind == "start":
            self._start(*content)
        elif kind == "resize":
            self._on_purpose = True
        elif kind == "wait":
            self.waits = True
            self._progress.on_message("too few hosts for the fewest workers; waiting for more")
        else:
            self._progress.on_message(content)

    def _start(self, epoch: int, step: int, history: list[dict[str, Any]], workers: int) -> None:
        before = self.workers[-1][2] if self.workers else workers
        self.workers.append((epoch + 1, step + 1, workers))
        self.reports = [EpochReport(**figures) for figures in history]
        self.waits = False
        if len(self.workers) > 1:
            lost = max(0, self._reached - epoch * self._steps - step)
            self.repeated_steps += lost
            self._resizes += self._on_purpose
            why = "the cluster changed" if self._on_purpose else "workers were lost"
            who = "new ones" if workers == before else f"{workers} instead of {before}"
            self._progress.on_message(f"{why}; {who} go on from step {step + 1} of epoch {epoch + 1}, {lost} steps back")
        elif epoch or step:
            self._progress.on_message(f"goes on from step {step + 1} of epoch {epoch + 1}" if step else f"goes on after epoch {epoch}")
        self._on_purpose = False

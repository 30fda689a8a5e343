"""Events of a run on the driver: epochs, worker failures, and changes of the number of workers."""

from __future__ import annotations

from typing import Any

from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import EpochReport


class RunLog:
    """Handles the events of rank 0 and of the controller.

    Args:
        progress: shows them.

    Attributes:
        reports: one per epoch, including those before this process started.
        repeated_steps: number of repeated steps; it may miss a few for which no event arrived.
        workers: epoch and step, from 1, at which workers started, and their number.
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
        """Number of restarts after a worker failure."""
        return max(0, len(self.workers) - 1 - self._resizes)

    def handle(self, kind: str, content: Any) -> None:
        """Handles an event."""
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
            self._progress.on_message("too few hosts for the minimum number of workers; waiting for more")
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
            why = "the cluster changed" if self._on_purpose else "worker failure"
            workers_now = "new workers" if workers == before else f"{workers} instead of {before} workers"
            self._progress.on_message(
                f"{why}: resuming with {workers_now} from step {step + 1} of epoch {epoch + 1}, "
                f"{lost} {'step' if lost == 1 else 'steps'} repeated"
            )
        elif epoch or step:
            self._progress.on_message(f"resuming from step {step + 1} of epoch {epoch + 1}" if step else f"resuming after epoch {epoch}")
        self._on_purpose = False

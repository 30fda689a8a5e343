"""Events of a run on the driver: epochs, worker failures, and changes of the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cifar_ray.errors import Interrupted, TrainingError
from cifar_ray.training.records.checkpoint import Checkpoints
from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import EpochReport, FitResult, TrainedRun, Weights
from cifar_ray.training.records.run_folder import Run


class RunLog:
    """Handles the events of rank 0 and of the controller.

    Args:
        progress: shows the events.

    Attributes:
        reports: one per epoch, including those before this process started.
        repeated_steps: number of repeated steps; steps without an event are not counted.
        workers: `(epoch, step, number of workers)` of each start of the workers; epoch and step count from 1.
        waits: whether the run has no workers now, because the cluster has too few hosts.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._reached = self._steps = self._resizes = 0
        self._on_purpose = False
        self._failure = ""
        self.reports: list[EpochReport] = []
        self.repeated_steps = 0
        self.workers: list[tuple[int, int, int]] = []
        self.waits = False

    @property
    def restarts(self) -> int:
        """Number of restarts after a worker failure."""
        return max(0, len(self.workers) - 1 - self._resizes)

    def handle(self, kind: str, content: Any) -> None:
        """Handle an event."""
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
        elif kind == "failure":
            self._failure = content
        elif kind == "wait":
            self.waits = True
            self._progress.on_message("too few hosts for the minimum number of workers; waiting for more")
        else:
            self._progress.on_message(content)

    @contextmanager
    def recording(self, run: Run) -> Iterator[None]:
        """Write the history at the end of the block, even after an error.

        Raises:
            Interrupted: with the command that resumes the run, if a signal stopped the run without saving.
        """
        try:
            yield
        except Interrupted as stop:
            raise Interrupted(f"run {run.name} stopped without saving; resume it with: {run.command()}", stop.signal_number) from None
        finally:
            if self.reports:
                run.write_history(self.reports)

    def end(
        self,
        run: Run,
        result: FitResult | None,
        signal_number: int | None,
        read_weights: Callable[[Checkpoints, int], Weights | None],
    ) -> TrainedRun:
        """The finished run.

        Args:
            run: the run.
            result: result from the workers; `None` if they stopped on command.
            signal_number: the signal that requested the stop; `None` without a stop.
            read_weights: reads the weights of the best epoch from the last checkpoint.

        Raises:
            Interrupted: if the run was stopped.
            TrainingError: if the last checkpoint, which has the best weights, is missing.
        """
        if result is None:
            assert signal_number is not None, "nothing else stops workers early"  # noqa: S101
            raise Interrupted(f"run {run.name} is saved; resume it with: {run.command()}", signal_number)
        weights = read_weights(run.checkpoints, result.best_epoch)
        if weights is None:
            raise TrainingError(f"run {run.name}: the last checkpoint is missing; run the same command again to repeat the training")
        return TrainedRun(run.name, run.files.path(), result, self.reports, weights, self.restarts, self.repeated_steps, self.workers)

    def _start(self, epoch: int, step: int, history: list[dict[str, Any]], workers: int) -> None:
        before = self.workers[-1][2] if self.workers else workers
        self.workers.append((epoch + 1, step + 1, workers))
        self.reports = [EpochReport(**figures) for figures in history]
        self.waits = False
        if len(self.workers) > 1:
            lost = max(0, self._reached - epoch * self._steps - step)
            self.repeated_steps += lost
            self._resizes += self._on_purpose
            why = self._failure or ("the cluster changed" if self._on_purpose else "worker failure")
            workers_now = " with new workers" if workers == before else f" with {workers} instead of {before} workers"
            self._progress.on_message(
                f"{why}: resuming{'' if self._failure else workers_now} from step {step + 1} of epoch {epoch + 1}, "
                f"{lost} {'step' if lost == 1 else 'steps'} repeated"
            )
        elif epoch or step:
            self._progress.on_message(f"resuming from step {step + 1} of epoch {epoch + 1}" if step else f"resuming after epoch {epoch}")
        self._on_purpose = False
        self._failure = ""

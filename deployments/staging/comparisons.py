"""Compare two versions on the same pictures, only while no request is in progress. Without such time, comparisons are dropped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cifar_ray.errors import ImageError
from deployments.predicting.contract import LoadingError, Observer, Picture, PixelSizeError
from deployments.predicting.pipeline import Outcome, Pipeline, Row
from deployments.predicting.sender import Sender
from deployments.staging.trials import Trial

# Limits of the queue of comparisons
_MAX_WAITING = 64
_MAX_WAITING_BYTES = 32_000_000
# Maximum number of compared pictures of one request: a whole batch would keep the next request waiting.
_MAX_PICTURES = 8
_IDLE_TIMEOUT_S = 1.0
_POLL_S = 0.004


Differed = Callable[[Sender, list[Picture], Outcome], None]


@dataclass(frozen=True, eq=False)
class _Comparison:
    trial: Trial
    sender: Sender
    pictures: list[Picture]
    outcome: Outcome
    reference: str | None

    @property
    def size_bytes(self) -> int:
        return sum(len(picture) if isinstance(picture, bytes) else picture.nbytes for picture in self.pictures)


class Comparisons:
    """A queue of answered requests that the other version classifies, too.

    Args:
        pipeline: runs the models.
        observer: receives the results.
        differed: receives the sender, the pictures and the answer of a request on which the versions differ.
    """

    def __init__(self, pipeline: Pipeline, observer: Observer, differed: Differed) -> None:
        self._differed = differed
        self._pipeline = pipeline
        self._observer = observer
        self._waiting: deque[_Comparison] = deque()
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None

    def offer(self, trial: Trial, sender: Sender, pictures: Sequence[Picture], outcome: Outcome, reference: str | None) -> None:
        """Queue a comparison of an answer with the answer of another version; it is dropped if the queue is full.

        Args:
            trial: the trial that counts the result.
            sender: id and client of the request.
            pictures: pictures of the request.
            outcome: the answer.
            reference: the other version: the version on trial, or the model that the request named.
        """
        # Pixels are copied, because they are part of the request's body, which would stay in memory.
        kept = [picture if isinstance(picture, bytes) else picture.copy() for picture in pictures[:_MAX_PICTURES]]
        comparison = _Comparison(trial, sender, kept, outcome, reference)
        if len(self._waiting) >= _MAX_WAITING or self._waiting_bytes + comparison.size_bytes > _MAX_WAITING_BYTES:
            self._drop(comparison)
            return
        self._waiting.append(comparison)
        self._waiting_bytes += comparison.size_bytes
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    async def finish(self) -> None:
        """Wait until the queue is empty."""
        if self._task is not None:
            await self._task

    async def _work(self) -> None:
        while self._waiting:
            comparison = self._waiting.popleft()
            self._waiting_bytes -= comparison.size_bytes
            if await self._has_time():
                await self._compare(comparison)
            else:
                self._drop(comparison)

    async def _has_time(self) -> bool:
        """Wait up to a second for a moment without a request; `False` if there is none."""
        for _ in range(int(_IDLE_TIMEOUT_S / _POLL_S)):
            if self._pipeline.is_idle:
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def _compare(self, comparison: _Comparison) -> None:
        trial, first = comparison.trial, comparison.outcome
        is_of_staged = comparison.reference == trial.stage.reference
        try:
            second = await self._pipeline.run_beside(comparison.pictures, comparison.reference)
        except LoadingError:
            trial.tally.not_ready += 1
            return
        except PixelSizeError:  # the other version takes pixels of another size
            return
        except Exception as error:  # no error of a comparison may affect a request
            if is_of_staged:
                trial.tally.staged.could_not_answer()
                self._observer.trial_event(trial.stage.name, trial.stage.version, "failed", str(error))
            return
        if is_of_staged:
            trial.tally.staged.answered(*second.confidences, second.timings_ms["total"])
            self._observer.trial_event(trial.stage.name, trial.stage.version, "shadowed")
        agreed = []
        for one, other in zip(first.rows, second.rows, strict=False):
            if isinstance(one, Row) and isinstance(other, Row):
                agree = labels(first, one) == labels(second, other)
                agreed.append(agree)
                trial.tally.compared += 1
                trial.tally.agreed += agree
                self._observer.trial_event(trial.stage.name, trial.stage.version, "agreed" if agree else "differed")
        if not all(agreed):
            self._differed(comparison.sender, comparison.pictures, first)

    def _drop(self, comparison: _Comparison) -> None:
        comparison.trial.tally.dropped += 1
        self._observer.trial_event(comparison.trial.stage.name, comparison.trial.stage.version, "dropped")


def labels(outcome: Outcome, row: Row | ImageError) -> frozenset[str]:
    """Predicted class or labels of a picture; empty if the picture could not be read."""
    if isinstance(row, ImageError):
        return frozenset()
    model = outcome.model
    if model.rules is None:
        return frozenset([model.class_names[int(row.probabilities.argmax())]])
    return frozenset(model.class_names[i] for i in model.rules.labels(row.probabilities).nonzero()[0].tolist())

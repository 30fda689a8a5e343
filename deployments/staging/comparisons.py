"""Compares two versions on the same pictures, beside the requests: only while no request is in progress; dropped without time."""

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

# Limits of the queue
_MAX_WAITING = 64
_MAX_WAITING_BYTES = 32_000_000
# Pictures of one request that are compared: a whole batch would keep the next request waiting
_MAX_PICTURES = 8
_PATIENCE_S = 1.0
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
        """Compare an answer with that of another version, if there is time for it.

        Args:
            trial: counts the result.
            sender: of the request.
            pictures: of the request.
            outcome: the answer.
            reference: the other version; the version on trial, or what the request named.
        """
        # a copy of pixels, which are part of the body of their request
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
        """Wait for a moment without a request."""
        for _ in range(int(_PATIENCE_S / _POLL_S)):
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
        except Exception as error:  # whatever it is, no request may notice
            if is_of_staged:
                trial.tally.staged.could_not_answer()
                self._observer.tried(trial.stage.name, trial.stage.version, "failed", str(error))
            return
        if is_of_staged:
            trial.tally.staged.answered(*second.confidences, second.timings_ms["total"])
            self._observer.tried(trial.stage.name, trial.stage.version, "shadowed")
        agreed = []
        for one, other in zip(first.rows, second.rows, strict=False):
            if isinstance(one, Row) and isinstance(other, Row):
                agree = labels(first, one) == labels(second, other)
                agreed.append(agree)
                trial.tally.compared += 1
                trial.tally.agreed += agree
                self._observer.tried(trial.stage.name, trial.stage.version, "agreed" if agree else "differed")
        if not all(agreed):
            self._differed(comparison.sender, comparison.pictures, first)

    def _drop(self, comparison: _Comparison) -> None:
        comparison.trial.tally.dropped += 1
        self._observer.tried(comparison.trial.stage.name, comparison.trial.stage.version, "dropped")


def labels(outcome: Outcome, row: Row | ImageError) -> frozenset[str]:
    """What an answer says of a picture: its class, or its labels; nothing if it could not be read."""
    if isinstance(row, ImageError):
        return frozenset()
    model = outcome.model
    if model.rules is None:
        return frozenset([model.class_names[int(row.probabilities.argmax())]])
    return frozenset(model.class_names[i] for i in model.rules.labels(row.probabilities).nonzero()[0].tolist())

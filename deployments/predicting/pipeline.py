"""From pictures to probabilities, over a `Classifier`: admits, decodes in threads, sends in batches, keeps the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import ImageError
from deployments.predicting import schemas
from deployments.predicting.batcher import Batcher
from deployments.predicting.contract import (
    Classified,
    Classifier,
    DeadlineError,
    Explained,
    ModelInfo,
    Observer,
    Pixels,
    ReplicaLostError,
    Status,
    UnavailableError,
)
from deployments.predicting.decoder import Decoder

# The model may change between decoding and classifying.
_ATTEMPTS = 3
# Batches on the way to each replica: while one runs, the next is already there.
_CALLS_PER_REPLICA = 2


class Row(NamedTuple):
    """What a model says of one picture: probabilities, float32 `[C]`, and whether it had rather not."""

    probabilities: npt.NDArray[np.float32]
    abstains: bool


class OverloadedError(UnavailableError):
    """There is no room for another picture."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the pictures of one request.

    Attributes:
        model: the one that answered.
        rows: for each picture the answer, or why there is none.
        timings_ms: where the time went.
    """

    model: ModelInfo
    rows: list[Row | ImageError]
    timings_ms: schemas.Timings


@dataclass(frozen=True)
class _Key:
    """Images that may share a batch."""

    reference: str | None
    image_size_px: int
    resize_policy: ResizePolicy


class Pipeline:
    """Runs requests through decoding and a model.

    Args:
        classifier: answers for the models.
        config: limits.
        observer: told of times and of what is pending.
    """

    def __init__(self, classifier: Classifier, config: ServeConfig, observer: Observer) -> None:
        self._classifier = classifier
        self._config = config
        self._observer = observer
        self._decoder = Decoder()
        self._batcher: Batcher[_Key] = Batcher(
            lambda key, images: classifier.classify(images, key.reference, key.resize_policy),
            config.max_batch_size,
            max_calls=_CALLS_PER_REPLICA * config.replica_limit,
        )
        # The last model heard of, by reference; an answer by another one replaces it, so nothing needs to be polled.
        self._models: dict[str | None, ModelInfo] = {}
        self._pending_images = 0

    async def model(self, reference: str | None) -> ModelInfo:
        """The model that answers now.

        Raises:
            UnavailableError: if there is none.
            UnknownModelError: if it is not in the store.
        """
        return (await self._classifier.status(reference)).require()

    async def explain(self, picture: bytes, reference: str | None, asked_class: str | None) -> tuple[Pixels, Explained]:
        """Shows where a class was seen in a picture.

        Args:
            picture: an image file, unchecked.
            reference: which model.
            asked_class: name or id of the class; `None` is the one predicted.

        Returns:
            The picture as the network sees it, uint8 `[S, S, 3]`, and the heatmap.

        Raises:
            ImageError: if the picture cannot be used.
            UnknownClassError: if the model has no such class.
            OverloadedError: and the others of `run`.
        """
        with self._admitted(1):
            async with Deadline(self._config.request_timeout_s, "no answer"):
                return await self._explain(picture, reference, asked_class)

    def check_room(self) -> None:
        """Asked before a request is read, so that refusing costs next to nothing.

        Raises:
            OverloadedError: if no picture can be taken now.
        """
        if self._pending_images >= self._config.pending_image_limit:
            raise OverloadedError(f"{self._pending_images} pictures are waiting already; try again soon")

    async def run(self, pictures: Sequence[bytes], reference: str | None) -> Outcome:
        """Classifies the pictures of one request, all by the same version.

        Raises:
            OverloadedError: if there is no room for them.
            DeadlineError: if it takes longer than `request_timeout_s`.
            UnavailableError: if no model answers.
            UnknownModelError: if the model is not in the store.
        """
        with self._admitted(len(pictures)):
            async with Deadline(self._config.request_timeout_s, "no answer"):
                outcome = await self._run(pictures, reference)
        self._observer.answered(outcome.timings_ms)
        return outcome

    @contextmanager
    def _admitted(self, images: int) -> Iterator[None]:
        self.check_room()
        self._pending_images += images
        self._observer.pending(self._pending_images)
        try:
            yield
        finally:
            self._pending_images -= images
            self._observer.pending(self._pending_images)

    async def _run(self, pictures: Sequence[bytes], asked_for: str | None) -> Outcome:
        started = time.perf_counter()
        reference = asked_for
        model = self._models.get(asked_for) or await self.model(asked_for)
        for _ in range(_ATTEMPTS):
            decoding = time.perf_counter()
            decoded = await self._decoder.decode(pictures, model.image_size_px, model.resize_policy)
            waiting = time.perf_counter()
            answer = await self._classify([pixels for pixels in decoded if not isinstance(pixels, ImageError)], reference, model)
            ended = time.perf_counter()
            if isinstance(answer, Classified):
                self._models[asked_for] = answer.model
                abstains = answer.abstains & self._config.abstain
                rows = map(Row, answer.probabilities, abstains.tolist())
                timings: schemas.Timings = {
                    "decode": _ms(waiting - decoding),
                    "queue": _ms(ended - waiting - answer.inference_s),
                    "inference": _ms(answer.inference_s),
                    "total": _ms(ended - started),
                }
                return Outcome(answer.model, [pixels if isinstance(pixels, ImageError) else next(rows) for pixels in decoded], timings)
            # Replicas take up a new version one after the other: from here on the request keeps to one.
            self._models.pop(asked_for, None)
            model = answer.require()
            reference = model.reference
        raise UnavailableError("the model is being replaced; try again")

    async def _explain(self, picture: bytes, asked_for: str | None, asked_class: str | None) -> tuple[Pixels, Explained]:
        reference, model = asked_for, await self.model(asked_for)
        for _ in range(_ATTEMPTS):
            class_id = None if asked_class is None else model.class_id(asked_class)
            [pixels] = await self._decoder.decode([picture], model.image_size_px, model.resize_policy)
            if isinstance(pixels, ImageError):
                raise pixels
            try:
                answer = await self._classifier.explain(pixels, reference, model, class_id)
            except ReplicaLostError:  # another one can be asked
                continue
            if isinstance(answer, Explained):
                return pixels, answer
            model = answer.require()
            reference = model.reference
        raise UnavailableError("the model is being replaced; try again")

    async def _classify(self, images: Sequence[Pixels], reference: str | None, model: ModelInfo) -> Classified | Status:
        """Sends images in parts of at most `max_batch_size`; all must be answered by one version."""
        if not images:
            return Classified(model, np.empty((0, len(model.class_names)), np.float32), np.empty(0, np.bool_), 0, 0.0)
        key, step = _Key(reference, model.image_size_px, model.resize_policy), self._config.max_batch_size
        parts = (self._batcher.classify(key, np.stack(images[i : i + step])) for i in range(0, len(images), step))
        answers = await asyncio.gather(*parts)
        classified = [answer for answer in answers if isinstance(answer, Classified)]
        if len(classified) < len(answers):
            return next(answer for answer in answers if isinstance(answer, Status))
        if any(answer.model != classified[0].model for answer in classified):
            return Status(max((answer.model for answer in classified), key=lambda model: model.version))
        probabilities, abstains = (
            np.concatenate(parts) for parts in zip(*((one.probabilities, one.abstains) for one in classified), strict=True)
        )
        slowest = max(classified, key=lambda answer: answer.inference_s)
        return replace(slowest, probabilities=probabilities, abstains=abstains)


class Deadline:
    """Ends what takes longer, as an asynchronous context manager.

    Args:
        timeout_s: longest time.
        what: begins the message.

    Raises:
        DeadlineError: `<what> within <timeout_s> s`.
    """

    def __init__(self, timeout_s: float, what: str) -> None:
        self._timeout = asyncio.timeout(timeout_s)
        self._message = f"{what} within {timeout_s:g} s; try again"

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise DeadlineError(self._message) from None


def _ms(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1000, 2)

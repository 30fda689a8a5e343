"""From pictures to probabilities over a `Classifier`: admission, decoding in threads, batching, deadline."""

from __future__ import annotations

import asyncio
import math
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
    ModelFailedError,
    ModelInfo,
    Observer,
    Picture,
    Pixels,
    ReplicaLostError,
    Status,
    UnavailableError,
)
from deployments.predicting.decoder import Decoder

# The model may change between decoding and classifying.
_ATTEMPTS = 3
# Batches in progress per replica: while one runs, the replica already has the next one.
_CALLS_PER_REPLICA = 2


class Row(NamedTuple):
    """Prediction for one picture: class probabilities, float32 `[C]`, and whether the model abstains."""

    probabilities: npt.NDArray[np.float32]
    abstains: bool


class OverloadedError(UnavailableError):
    """The queue is full."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Results for the pictures of one request.

    Attributes:
        model: the model that predicted.
        rows: the prediction or the error for each picture.
        timings_ms: time per stage.
        answer: predictions for all pictures without an error.
    """

    model: ModelInfo
    rows: list[Row | ImageError]
    timings_ms: schemas.Timings
    answer: Classified

    @property
    def confidences(self) -> tuple[list[float], int]:
        """The highest probability of each classified picture, and the number of pictures from which the model abstained."""
        return self.answer.probabilities.max(axis=1).tolist(), self.num_abstained

    @property
    def num_abstained(self) -> int:
        """Number of pictures from which the model abstained ("none of these")."""
        return sum(row.abstains for row in self.rows if isinstance(row, Row))


@dataclass(frozen=True)
class _Key:
    """Images that may share a batch."""

    reference: str | None
    image_size_px: int
    resize_policy: ResizePolicy


class Pipeline:
    """Decodes the pictures of a request and classifies them.

    Args:
        classifier: runs the models.
        config: limits.
        observer: receives timings and the number of pending images.
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
        # The last known model by reference. A prediction by another model replaces it, so no polling is needed.
        self._models: dict[str | None, ModelInfo] = {}
        self._pending_images = 0

    async def model(self, reference: str | None) -> ModelInfo:
        """The model that predicts.

        Raises:
            UnavailableError: if no model is available.
            UnknownModelError: if it is not in the store.
        """
        return (await self._classifier.status(reference)).require()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        return self._pending_images == 0

    def last_known(self, reference: str | None) -> ModelInfo | None:
        """The model that last answered for a reference; `None` before the first answer."""
        return self._models.get(reference)

    async def explain(self, picture: bytes, reference: str | None, class_name_or_id: str | None) -> tuple[Pixels, Explained]:
        """Compute the Grad-CAM heatmap of a class in a picture.

        Args:
            picture: an image file, unchecked.
            reference: the model.
            class_name_or_id: the class; `None` is the predicted class.

        Returns:
            The picture as the network sees it, uint8 `[S, S, 3]`, and the heatmap.

        Raises:
            ImageError: if the picture cannot be decoded.
            UnknownClassError: if the model has no such class.
            OverloadedError: and other errors, as `run`.
        """
        with self._admitted(1):
            async with Deadline(self._config.request_timeout_s, "no prediction"):
                return await self._explain(picture, reference, class_name_or_id)

    def check_room(self) -> None:
        """Check that the queue has room. Called before a request is read, so that a refusal is cheap.

        Raises:
            OverloadedError: if the queue is full.
        """
        if self._pending_images >= self._config.pending_image_limit:
            raise OverloadedError(f"the queue is full ({self._pending_images} pictures); try again later")

    async def run(self, pictures: Sequence[Picture], reference: str | None) -> Outcome:
        """Classify the pictures of one request, all with the same model version.

        Raises:
            OverloadedError: if the queue is full.
            DeadlineError: if it takes longer than `request_timeout_s`.
            UnavailableError: if no model is available.
            UnknownModelError: if the model is not in the store.
            ModelFailedError: if a probability is infinite or NaN.
        """
        with self._admitted(len(pictures)):
            async with Deadline(self._config.request_timeout_s, "no prediction"):
                outcome = await self._run(pictures, reference)
        self._observer.answered(outcome.timings_ms)
        return outcome

    async def run_beside(self, pictures: Sequence[Picture], reference: str | None) -> Outcome:
        """Classify pictures for the server itself, not counted as a request. Raises as `run`, except `OverloadedError`."""
        async with Deadline(self._config.request_timeout_s, "no prediction"):
            return await self._run(pictures, reference)

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

    async def _run(self, pictures: Sequence[Picture], requested_model: str | None) -> Outcome:
        started = time.perf_counter()
        reference = requested_model
        model = self._models.get(requested_model) or await self.model(requested_model)
        for _ in range(_ATTEMPTS):
            decoding = time.perf_counter()
            decoded = await self._decoder.decode(pictures, model.image_size_px, model.resize_policy)
            waiting = time.perf_counter()
            answer = await self._classify([pixels for pixels in decoded if not isinstance(pixels, ImageError)], reference, model)
            ended = time.perf_counter()
            if isinstance(answer, Classified):
                self._models[requested_model] = answer.model
                if not math.isfinite(np.vdot(answer.probabilities, answer.probabilities)):  # four times as fast as np.isfinite
                    raise ModelFailedError(f"{answer.model.reference} gave no probability for this picture; serve another version")
                abstains = answer.abstains & self._config.abstain
                rows = map(Row, answer.probabilities, abstains.tolist())
                timings: schemas.Timings = {
                    "decode": _ms(waiting - decoding),
                    "queue": _ms(ended - waiting - answer.inference_s),
                    "inference": _ms(answer.inference_s),
                    "total": _ms(ended - started),
                }
                return Outcome(
                    answer.model, [pixels if isinstance(pixels, ImageError) else next(rows) for pixels in decoded], timings, answer
                )
            # Replicas load a new version one after the other; from here on the request uses one version.
            self._models.pop(requested_model, None)
            model = answer.require()
            reference = model.reference
        raise UnavailableError("the server is loading a new version of the model; try again")

    async def _explain(self, picture: bytes, requested_model: str | None, class_name_or_id: str | None) -> tuple[Pixels, Explained]:
        reference, model = requested_model, await self.model(requested_model)
        for _ in range(_ATTEMPTS):
            class_id = None if class_name_or_id is None else model.class_id(class_name_or_id)
            [pixels] = await self._decoder.decode([picture], model.image_size_px, model.resize_policy)
            if isinstance(pixels, ImageError):
                raise pixels
            try:
                answer = await self._classifier.explain(pixels, reference, model, class_id)
            except ReplicaLostError:  # retry on another replica
                continue
            if isinstance(answer, Explained):
                return pixels, answer
            model = answer.require()
            reference = model.reference
        raise UnavailableError("the server is loading a new version of the model; try again")

    async def _classify(self, images: Sequence[Pixels], reference: str | None, model: ModelInfo) -> Classified | Status:
        """Send images in parts of at most `max_batch_size`; one version must classify all of them."""
        if not images:
            return Classified(model, np.empty((0, len(model.class_names)), np.float32), np.empty(0, np.bool_), 0, 0.0)
        key, step = _Key(reference, model.image_size_px, model.resize_policy), self._config.max_batch_size
        if len(images) == 1:
            return await self._batcher.classify(key, images[0][np.newaxis])
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
    """Asynchronous context manager that ends its block at a time limit.

    Args:
        timeout_s: time limit in seconds.
        what: start of the error message.

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

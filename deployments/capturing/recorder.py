"""Choose which answered pictures to capture, and write them in the background, some dozens at a time."""

from __future__ import annotations

import asyncio
import io
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from PIL import Image

from cifar_ray.captures.capture_files import Capture, Captures
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import CifarRayError
from deployments.predicting.contract import Picture
from deployments.predicting.pipeline import Outcome, Row
from deployments.predicting.sender import Sender

UNSURE_BELOW = 0.7

# A file is written when the first of these limits is reached.
_SHARD_PICTURES = 64
_SHARD_BYTES = 8_000_000
_SHARD_S = 10.0
_MAX_WAITING_BYTES = 64_000_000

logger = logging.getLogger("ray.serve")


class Recorder:
    """Captures a random sample of the answered requests. With `capture=0` it does nothing.

    Args:
        config: which pictures to capture, how many, and for how long.
        captures: storage of the captured pictures.
    """

    def __init__(self, config: ServeConfig, captures: Captures) -> None:
        self._config = config
        self._captures = captures
        self._waiting: list[Capture] = []
        self._waiting_bytes = 0
        self._writing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_failing = False
        self.dropped = 0

    def offer(self, sender: Sender, pictures: Sequence[Picture], outcome: Outcome, *, disagrees: bool = False) -> None:
        """Capture the pictures of an answered request, if it is in the random sample.

        Args:
            sender: id of the request.
            pictures: the pictures as sent.
            outcome: the answer.
            disagrees: whether a version on trial gave another answer; in this case, the pictures are offered for the second time.
        """
        if not self._config.capture or random.random() >= self._config.capture:  # noqa: S311  (a sample)
            return
        now = datetime.now(UTC)
        for index, (picture, row) in enumerate(zip(pictures, outcome.rows, strict=False)):
            if isinstance(row, Row):
                kept = replace(_capture(outcome, row), request_id=sender.request_id, index=index, at=now, disagrees=disagrees)
                self._keep(replace(kept, picture=as_file(picture)))

    async def flush(self) -> None:
        """Write all waiting captures."""
        async with self._writing:
            captures, self._waiting, self._waiting_bytes = self._waiting, [], 0
            if self._timer:
                self._timer.cancel()
                self._timer = None
            if captures:
                await asyncio.to_thread(self._write, captures)

    def _keep(self, capture: Capture) -> None:
        if self._config.capture_only == "unsure" and not (capture.disagrees or capture.abstains or capture.confidence < UNSURE_BELOW):
            return
        if self._waiting_bytes + len(capture.picture) > _MAX_WAITING_BYTES:  # slow storage: drop it, so that requests do not wait
            self.dropped += 1
            return
        self._waiting.append(capture)
        self._waiting_bytes += len(capture.picture)
        if len(self._waiting) >= _SHARD_PICTURES or self._waiting_bytes >= _SHARD_BYTES:
            self._start_flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SHARD_S, self._start_flush)

    def _start_flush(self) -> None:
        task = asyncio.create_task(self.flush())
        self._tasks.add(task)  # the event loop holds only weak references to tasks
        task.add_done_callback(self._tasks.discard)

    def _write(self, captures: list[Capture]) -> None:
        try:
            self._captures.write(captures)
            self._captures.expire(self._config.capture_max_bytes, self._config.capture_max_days * 86_400)
            self._is_failing = False
        except CifarRayError as error:
            self.dropped += len(captures)
            if not self._is_failing:
                logger.warning("captured pictures cannot be written: %s", error)
            self._is_failing = True


def as_file(picture: Picture) -> bytes:
    """Return an image file unchanged, and pixels as a PNG without compression, which takes a fraction of a millisecond."""
    if isinstance(picture, bytes):
        return picture
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG", compress_level=0)
    return png.getvalue()


def _capture(outcome: Outcome, row: Row) -> Capture:
    """The capture of an answer, without the fields of its request."""
    model = outcome.model
    if model.rules is None:
        predicted = model.class_names[int(row.probabilities.argmax())]
    else:
        predicted = ",".join(model.class_names[i] for i in model.rules.labels(row.probabilities).nonzero()[0].tolist())
    confidence = float(row.probabilities.max())
    return Capture("", 0, datetime.now(UTC), model.reference, predicted, confidence, row.abstains, disagrees=False)

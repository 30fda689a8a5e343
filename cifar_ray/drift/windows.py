"""Counts of what a model answered, in windows of time. They hold no picture."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError

from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree

FOLDER = "drift"
CONFIDENCE_BINS = 20

# A window is closed when it has both; older ones are deleted
_MIN_PICTURES, _MIN_S = 100, 600.0
_WRITE_S = 30.0
_MAX_AGE_S = 90 * 86_400
_MAX_CLASSES = 1000

_NAME = re.compile(r"([0-9]{13})-[0-9a-f]{32}\.json")


class Window(BaseModel):
    """What one version answered for a while.

    Attributes:
        pictures: that it classified.
        abstained: pictures of these that are unlike its validation pictures.
        confidence: number of pictures by highest probability, in 20 bins from 0 to 1.
        classes: number of pictures by class, or by label.
    """

    model_config = ConfigDict(frozen=True)

    pictures: int = 0
    abstained: int = 0
    confidence: tuple[int, ...] = (0,) * CONFIDENCE_BINS
    classes: dict[str, int] = {}

    def __add__(self, other: Window) -> Window:
        return Window(
            pictures=self.pictures + other.pictures,
            abstained=self.abstained + other.abstained,
            confidence=tuple(a + b for a, b in zip(self.confidence, other.confidence, strict=True)),
            classes=dict(Counter(self.classes) + Counter(other.classes)),
        )


@dataclass
class _Open:
    begun_ms: int
    pictures: int = 0
    abstained: int = 0
    confidence: list[int] = field(default_factory=lambda: [0] * CONFIDENCE_BINS)
    classes: Counter[str] = field(default_factory=Counter)
    is_written: bool = False

    def encode(self) -> bytes:
        counts = dict(self.classes.most_common(_MAX_CLASSES))
        window = Window(pictures=self.pictures, abstained=self.abstained, confidence=tuple(self.confidence), classes=counts)
        return window.model_dump_json().encode()


class WindowWriter:
    """Counts answers, and writes the counts of each version.

    Args:
        storage: path or URI.
        clock: seconds since 1970.
    """

    def __init__(self, storage: str, clock: Callable[[], float] = time.time) -> None:
        self._files = FileTree(storage, FOLDER, timeout_s=0)
        self._clock = clock
        self._id = uuid.uuid4().hex
        self._open: dict[str, _Open] = {}

    def count(self, reference: str, classes: Sequence[str], confidences: Sequence[float], abstained: int) -> None:
        """Count the pictures of a request.

        Args:
            reference: `name@version` that answered.
            classes: class of each picture, or all labels of all pictures.
            confidences: highest probability of each picture.
            abstained: number of pictures that are unlike the validation pictures.
        """
        window = self._open.get(reference) or self._open.setdefault(reference, _Open(int(self._clock() * 1000)))
        window.pictures += len(confidences)
        window.abstained += abstained
        for confidence in confidences:
            window.confidence[min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)] += 1
        window.classes.update(classes)
        window.is_written = False

    def write_forever(self) -> None:
        """Write every 30 s, in a thread of its own; what cannot be written waits."""

        def loop() -> None:
            while True:
                time.sleep(_WRITE_S)
                with suppress(StoreError):
                    self.write()

        threading.Thread(target=loop, name="drift", daemon=True).start()

    def write(self) -> None:
        """Write what is new, and close windows that are complete.

        Raises:
            StoreError: if the storage cannot be written.
        """
        now_ms = int(self._clock() * 1000)
        for reference, window in list(self._open.items()):
            if window.is_written:
                continue
            if window.pictures >= _MIN_PICTURES and now_ms - window.begun_ms >= _MIN_S * 1000:
                del self._open[reference]  # first: a request may come at any moment
            window.is_written = True
            try:
                self._files.replace(f"{reference}/{window.begun_ms:013d}-{self._id}.json", window.encode())
            except StoreError:
                window.is_written = False
                self._open.setdefault(reference, window)
                raise


def read_windows(storage: str, reference: str) -> list[Window]:
    """The windows of a version, the oldest first; damaged ones are left out, those older than 90 days deleted.

    Raises:
        StoreError: if the storage cannot be read.
    """
    files, oldest_ms = FileTree(storage, f"{FOLDER}/{reference}"), (time.time() - _MAX_AGE_S) * 1000
    found = []
    for name in files.files(allow_not_found=True):
        match = _NAME.fullmatch(name)
        if match and int(match[1]) < oldest_ms:
            files.delete(name)
        elif match and (data := files.read(name)):
            try:
                found.append(Window.model_validate_json(data))
            except ValidationError:
                continue
    return found

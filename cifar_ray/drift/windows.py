"""Counts of the answers of a model, in windows of time. They contain no pictures."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from cifar_ray.errors import StoreError
from cifar_ray.metrics.accuracy import Logits
from cifar_ray.metrics.label_rules import LabelRules
from cifar_ray.storage import FileTree

FOLDER = "drift"
CONFIDENCE_BINS = 20

# Minimum number of pictures and minimum age: a window that has reached both is closed.
_MIN_PICTURES, _MIN_S = 100, 600.0
_WRITE_S = 30.0
_MAX_AGE_S = 90 * 86_400  # older windows are deleted
_MAX_CLASSES = 1000
# Maximum number of answers that wait to be counted, and size above which an answer is counted at once
_MAX_WAITING, _MAX_WAITING_NUMBERS = 256, 10_000

_NAME = re.compile(r"([0-9]{13})-[0-9a-f]{32}\.json")


class Window(BaseModel):
    """Counts of the answers of one version over some time.

    Attributes:
        pictures: number of classified pictures.
        abstained: number of these pictures that are unlike the validation pictures.
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


class _Answer(NamedTuple):
    reference: str
    class_names: Sequence[str]
    probabilities: Logits
    abstained: int
    rules: LabelRules | None


@dataclass
class _Open:
    begun_ms: int
    pictures: int = 0
    abstained: int = 0
    confidence: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(CONFIDENCE_BINS, np.int64))
    classes: Counter[str] = field(default_factory=Counter)
    is_written: bool = False

    def add(self, answers: Sequence[_Answer]) -> None:
        class_names, rules = answers[0].class_names, answers[0].rules
        probabilities = np.concatenate([answer.probabilities for answer in answers])
        bins = np.minimum((probabilities.max(axis=1) * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
        class_ids = probabilities.argmax(axis=1) if rules is None else rules.labels(probabilities).nonzero()[1]
        counts = np.bincount(class_ids, minlength=len(class_names))
        self.pictures += len(probabilities)
        self.abstained += sum(answer.abstained for answer in answers)
        self.confidence += np.bincount(bins, minlength=CONFIDENCE_BINS)
        self.classes.update({class_names[i]: int(counts[i]) for i in counts.nonzero()[0].tolist()})
        self.is_written = False

    def encode(self) -> bytes:
        counts = dict(self.classes.most_common(_MAX_CLASSES))
        window = Window(pictures=self.pictures, abstained=self.abstained, confidence=tuple(self.confidence.tolist()), classes=counts)
        return window.model_dump_json().encode()


class WindowWriter:
    """Counts answers, and writes the counts of each version. Thread-safe.

    Args:
        storage: path or URI.
        clock: seconds since 1970.
    """

    def __init__(self, storage: str, clock: Callable[[], float] = time.time) -> None:
        self._files = FileTree(storage, FOLDER, timeout_s=0)
        self._clock = clock
        self._id = uuid.uuid4().hex
        self._open: dict[str, _Open] = {}
        self._waiting: deque[_Answer] = deque()
        self._lock = threading.Lock()

    def count(
        self, reference: str, class_names: Sequence[str], probabilities: Logits, abstained: int, rules: LabelRules | None = None
    ) -> None:
        """Count the pictures of a request.

        This takes a microsecond per request: answers wait in a queue, and hundreds of them are counted together.

        Args:
            reference: `name@version` of the model that answered.
            class_names: names of the C classes.
            probabilities: float32 `[N, C]`, finite, 0–1.
            abstained: number of pictures that are unlike the validation pictures.
            rules: rules that give the labels of a picture; default: its class is the most likely one.
        """
        if len(probabilities):
            self._waiting.append(_Answer(reference, class_names, probabilities, abstained, rules))
        if len(self._waiting) >= _MAX_WAITING or probabilities.size > _MAX_WAITING_NUMBERS:
            self._add_waiting()

    def _add_waiting(self) -> None:
        with self._lock:
            answers: dict[str, list[_Answer]] = {}
            while self._waiting:
                answer = self._waiting.popleft()
                answers.setdefault(answer.reference, []).append(answer)
            for reference, of_version in answers.items():
                window = self._open.setdefault(reference, _Open(int(self._clock() * 1000)))
                window.add(of_version)

    def write_forever(self) -> None:
        """Start a thread that writes every 30 s; after an error of the storage, it tries again 30 s later."""

        def loop() -> None:
            while True:
                time.sleep(_WRITE_S)
                with suppress(StoreError):
                    self.write()

        threading.Thread(target=loop, name="drift", daemon=True).start()

    def write(self) -> None:
        """Write windows with new counts, and close complete windows.

        Raises:
            StoreError: if the storage cannot be written.
        """
        self._add_waiting()
        now_ms = int(self._clock() * 1000)
        for reference, window in list(self._open.items()):
            with self._lock:
                if window.is_written:
                    continue
                if window.pictures >= _MIN_PICTURES and now_ms - window.begun_ms >= _MIN_S * 1000:
                    del self._open[reference]
                window.is_written = True
                content = window.encode()
            try:
                self._files.replace(f"{reference}/{window.begun_ms:013d}-{self._id}.json", content)
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


def read_edges(storage: str, reference: str, first: int, recent: int, active_s: float) -> list[Window]:
    """The first and the last windows of a version, the oldest first; the files between are not read.

    Args:
        storage: path or URI.
        reference: `name@version`.
        first: minimum number of pictures in the first windows.
        recent: minimum number of pictures in the last windows.
        active_s: if the last window began more seconds ago, the version is no longer in use, and the result is empty.

    Raises:
        StoreError: if the storage cannot be read.
    """
    files = FileTree(storage, f"{FOLDER}/{reference}", timeout_s=0)
    names = [name for name in files.files(allow_not_found=True) if _NAME.fullmatch(name)]
    if not names or time.time() - int(names[-1].partition("-")[0]) / 1000 > active_s:
        return []
    begun: list[Window] = []
    ended: list[Window] = []
    while names and sum(window.pictures for window in begun) < first:
        begun += _read(files, names.pop(0))
    while names and sum(window.pictures for window in ended) < recent:
        ended += _read(files, names.pop())
    return begun + ended[::-1]


def _read(files: FileTree, name: str) -> list[Window]:
    """A window; empty if the file is damaged or was just deleted."""
    data = files.read(name)
    try:
        return [] if data is None else [Window.model_validate_json(data)]
    except ValidationError:
        return []

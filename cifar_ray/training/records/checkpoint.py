"""Checkpoints of a run: folders `epoch-0007-try-0001` and, within an epoch, `epoch-0007-step-00120-try-0001`.

A checkpoint is committed by `checkpoint.json`, which is written last and has the sha256 of the state. Readers ignore a folder without
one, and go back to the next older checkpoint where a state is not what was written.

A try is one time that the workers started. Its number is never given again and stands in the names, so a worker that was cut off and
comes back writes over nothing of its successors; before it writes it finds that there are any, and gives up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cifar_ray.config.documents import without_format
from cifar_ray.errors import StoreError, TrainingError
from cifar_ray.storage import FileTree

STATE_FILE = "state.pt"
COMMIT_FILE = "checkpoint.json"
FORMAT_VERSION = 1
ATTEMPTS = "tries"  # the name on disk since the first release
KEPT = 2  # the newest, and one to go back to should it be damaged

_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{5,}))?-try-(\d{4,})")


@dataclass(frozen=True, order=True)
class Place:
    """Where a checkpoint stands; later tries are greater, whatever their epoch: they knew of all before."""

    attempt: int
    epoch: int
    step: int

    @property
    def folder(self) -> str:
        """Its name below the run."""
        step = f"-step-{self.step:05d}" if self.step else ""
        return f"epoch-{self.epoch:04d}{step}-try-{self.attempt:04d}"

    def __str__(self) -> str:
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"the end of epoch {self.epoch}"


class Checkpoints:
    """All checkpoints of one run.

    Args:
        storage: where the run is.
        run: its name.
        on_message: told in a line when one is damaged.
    """

    def __init__(self, storage: str, run: str, on_message: Callable[[str], None] = lambda _: None) -> None:
        self._storage, self._folder = storage, f"runs/{run}"
        self._files = FileTree(storage, self._folder)
        self._on_message = on_message

    def begin_attempt(self, about: dict[str, Any]) -> int:
        """Takes the next number, and leaves what is known of the try under it."""
        return self._files.add_numbered(ATTEMPTS, {"try.json": json.dumps(about).encode()})

    def attempts(self) -> int:
        """How often the run's workers were started."""
        return max(self._files.numbers(ATTEMPTS), default=0)

    def places(self) -> list[Place]:
        """Of all folders, newest first; some may lack their commit."""
        found = (_NAME.fullmatch(folder) for folder in self._files.folders())
        places = (Place(int(match[3]), int(match[1]), int(match[2] or 0)) for match in found if match)
        return sorted(places, reverse=True)

    def newest(self) -> tuple[Place, bytes] | None:
        """The newest checkpoint that is whole, and its state."""
        for place in self.places():
            data = self.read(place)
            if data is not None:
                return place, data
        return None

    def read(self, place: Place) -> bytes | None:
        """The state of a checkpoint; `None`, and a message, if it is damaged. One that was never committed is passed over in silence."""
        commit = self._files.read(f"{place.folder}/{COMMIT_FILE}")
        if commit is None:
            return None
        data = self._files.read(f"{place.folder}/{STATE_FILE}")
        try:
            values = dict(json.loads(commit))
            expected = str(values["sha256"])
        except (ValueError, KeyError, TypeError):
            expected = ""
        else:
            without_format(values, self._files.path(f"{place.folder}/{COMMIT_FILE}"), FORMAT_VERSION)
        if data is not None and hashlib.sha256(data).hexdigest() == expected:
            return data
        wrong = "is missing" if data is None else "is damaged"
        self._on_message(f"checkpoint {place.folder}: {STATE_FILE if expected else COMMIT_FILE} {wrong}; trying an older one")
        return None

    def write(self, place: Place, data: bytes, figures: dict[str, Any]) -> None:
        """Commits a checkpoint; then removes all but the newest few.

        Raises:
            StoreError: if the storage does not take it.
            TrainingError: if another process has taken the run over.
        """
        if self.attempts() > place.attempt:
            raise TrainingError(f"{self._files.path()} was taken over by another process; stopping this one")
        commit = (
            {"format_version": FORMAT_VERSION}
            | figures
            | {"epoch": place.epoch, "step": place.step, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        )
        self._files.replace(f"{place.folder}/{STATE_FILE}", data)
        self._files.replace(f"{place.folder}/{COMMIT_FILE}", json.dumps(commit, indent=1).encode())
        self.sweep()

    def sweep(self, keep: int = KEPT) -> None:
        """Removes folders that were left behind by earlier tries, and all committed ones but the newest few."""
        places = self.places()
        commits = self._files.have_files([f"{place.folder}/{COMMIT_FILE}" for place in places])
        committed = [place for place, is_there in zip(places, commits, strict=True) if is_there]
        for place in places:
            if place not in committed[:keep]:
                FileTree(self._storage, f"{self._folder}/{place.folder}").remove()


class BackgroundWriter:
    """Writes beside the training, one checkpoint at a time; what fails is raised by the next call, or at the end.

    Args:
        checkpoints: of the run.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        except (StoreError, TrainingError):
            if kind is None:
                raise
        finally:
            self._pool.shutdown()

    def write(self, place: Place, data: bytes, figures: dict[str, Any], on_written: Callable[[], None] = lambda: None) -> None:
        """As `Checkpoints.write`; waits for the one before. `on_written` is called at the end, in another thread."""
        self.wait()
        self._under_way = self._pool.submit(self._write, place, data, figures, on_written)

    def _write(self, place: Place, data: bytes, figures: dict[str, Any], on_written: Callable[[], None]) -> None:
        self._checkpoints.write(place, data, figures)
        on_written()

    def wait(self) -> None:
        """Until all is written."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

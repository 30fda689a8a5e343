"""Checkpoints of a run: folders `epoch-0007-try-0001` and, within an epoch, `epoch-0007-step-00120-try-0001`.

`checkpoint.json` commits a checkpoint: it is written last and contains the sha256 of the state. Readers ignore a folder without
it, and fall back to the next older checkpoint if the checksum of a state differs.

An attempt (`try` on disk) is one start of the workers. Its number is never reused and is part of the names, so a worker that reconnects
after a network failure cannot overwrite files of a later attempt. Before each write, it checks for a later attempt, and stops if there
is one.
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
KEPT = 2  # the newest checkpoint, and one to fall back to if the newest is damaged

_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{5,}))?-try-(\d{4,})")


@dataclass(frozen=True, order=True)
class CheckpointPosition:
    """Position of a checkpoint; a later attempt is greater, whatever its epoch, because it resumed from the earlier ones."""

    attempt: int
    epoch: int
    step: int

    @property
    def folder(self) -> str:
        """Name of the checkpoint's folder in the folder of the run."""
        step = f"-step-{self.step:05d}" if self.step else ""
        return f"epoch-{self.epoch:04d}{step}-try-{self.attempt:04d}"

    def __str__(self) -> str:
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"the end of epoch {self.epoch}"


class Checkpoints:
    """All checkpoints of one run.

    Args:
        storage: storage of the run.
        run: name of the run.
        on_message: receives a message if a checkpoint is damaged.
    """

    def __init__(self, storage: str, run: str, on_message: Callable[[str], None] = lambda _: None) -> None:
        self._storage, self._folder = storage, f"runs/{run}"
        self._files = FileTree(storage, self._folder)
        self._on_message = on_message

    def begin_attempt(self, about: dict[str, Any]) -> int:
        """Claim the next attempt number, and save facts about the attempt under it."""
        return self._files.add_numbered(ATTEMPTS, {"try.json": json.dumps(about).encode()})

    def attempts(self) -> int:
        """Number of attempts so far."""
        return max(self._files.numbers(ATTEMPTS), default=0)

    def places(self) -> list[CheckpointPosition]:
        """Positions of all checkpoint folders, newest first, including uncommitted ones."""
        found = (_NAME.fullmatch(folder) for folder in self._files.folders())
        places = (CheckpointPosition(int(match[3]), int(match[1]), int(match[2] or 0)) for match in found if match)
        return sorted(places, reverse=True)

    def newest(self) -> tuple[CheckpointPosition, bytes] | None:
        """The newest intact checkpoint and its state; `None` if there is none."""
        for place in self.places():
            data = self.read(place)
            if data is not None:
                return place, data
        return None

    def read(self, place: CheckpointPosition) -> bytes | None:
        """Read the state of a checkpoint; `None` with a message if it is damaged, `None` without a message if it was never committed."""
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
        problem = "is missing" if data is None else "is damaged"
        self._on_message(f"checkpoint {place.folder}: {STATE_FILE if expected else COMMIT_FILE} {problem}; trying an older checkpoint")
        return None

    def write(self, place: CheckpointPosition, data: bytes, figures: dict[str, Any]) -> None:
        """Write and commit a checkpoint; then remove all but the newest ones.

        Args:
            place: position of the checkpoint.
            data: state of the training.
            figures: `EpochReport.figures` of the last finished epoch, for the commit file.

        Raises:
            StoreError: if the storage cannot be written.
            TrainingError: if another process has taken over the run.
        """
        if self.attempts() > place.attempt:
            raise TrainingError(f"another process has taken over {self._files.path()}; stopping this one")
        commit = (
            {"format_version": FORMAT_VERSION}
            | figures
            | {"epoch": place.epoch, "step": place.step, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        )
        self._files.replace(f"{place.folder}/{STATE_FILE}", data)
        self._files.replace(f"{place.folder}/{COMMIT_FILE}", json.dumps(commit, indent=1).encode())
        self.sweep()

    def sweep(self, keep: int = KEPT) -> None:
        """Remove all uncommitted folders, and all committed checkpoints except the `keep` newest ones."""
        places = self.places()
        commits = self._files.have_files([f"{place.folder}/{COMMIT_FILE}" for place in places])
        committed = [place for place, is_there in zip(places, commits, strict=True) if is_there]
        for place in places:
            if place not in committed[:keep]:
                FileTree(self._storage, f"{self._folder}/{place.folder}").remove()


class BackgroundWriter:
    """Writes checkpoints in a thread, one at a time; the next call, or the end of the block, raises an error of the thread.

    Args:
        checkpoints: checkpoints of the run.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

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

    def write(
        self, place: CheckpointPosition, data: Callable[[], bytes], figures: dict[str, Any], on_written: Callable[[], None] = lambda: None
    ) -> None:
        """Wait for the previous checkpoint, then start to write this one; the thread calls `data`, writes, and calls `on_written`."""
        self.wait()
        self._pending = self._pool.submit(self._write, place, data, figures, on_written)

    def _write(self, place: CheckpointPosition, data: Callable[[], bytes], figures: dict[str, Any], on_written: Callable[[], None]) -> None:
        self._checkpoints.write(place, data(), figures)
        on_written()

    def wait(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

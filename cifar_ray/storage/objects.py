"""Writes to an object store: it has no rename and no lock, but each put is atomic and immediately visible to all."""

from __future__ import annotations

import logging
import mmap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from pyarrow.fs import FileSelector, FileSystem, FileType

from cifar_ray.storage.conditional_puts import ConditionalPuts, NoConditionalPutsError, list_bucket
from cifar_ray.storage.retry import Retry

CLAIMS = ".claims"

_CLAIM_TIMEOUT_S = 3.0
_POLL_S = 0.05

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObjectWriter:
    """Atomic puts, changes that do not overwrite each other, and numbers that no two writers get.

    Attributes:
        storage: URI of the storage.
        file_system: file system of an object store.
        path: converts a path in the tree to one in the file system.
        retry: retries transient errors.
    """

    storage: str
    file_system: FileSystem
    path: Callable[[str], str]
    retry: Retry

    def put(self, path: str, content: bytes | mmap.mmap) -> None:
        """Write a file completely, or not at all."""
        self.retry.attempt(f"write {self.path(path)}", lambda: self._put(path, content))

    def update(self, path: str, change: Callable[[bytes | None], bytes], read: Callable[[str], bytes | None]) -> bytes:
        """Replace the content of a file by `change(content)`; start again after a concurrent change.

        If the store has no conditional puts, a concurrent change may be lost; a log line says so.

        Args:
            path: path of the file.
            change: as for `FileTree.update`.
            read: reads a file, for stores without conditional puts.
        """
        bucket, _, key = self.path(path).partition("/")
        try:
            puts = ConditionalPuts(self.storage, bucket, getattr(self.file_system, "region", None), self.retry)
            return puts.update(key, change)
        except NoConditionalPutsError as error:
            _logger.warning("%s is written without protection against changes at the same moment: %s", self.path(path), error)
        content = change(read(path))
        self.put(path, content)
        return content

    def walk(self, folder: str) -> Iterator[str]:
        """Paths in the file system of all objects below a folder, listed a thousand per request.

        If obstore cannot reach the store, pyarrow lists the objects in one call and holds all of them in memory.
        """
        bucket, _, prefix = folder.partition("/")
        try:
            pages = list_bucket(self.storage, bucket, getattr(self.file_system, "region", None), prefix)
            yield from (f"{bucket}/{path}" for page in pages for path in page)
        except NoConditionalPutsError:
            entries = self.file_system.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True))
            yield from (entry.path for entry in entries if entry.type == FileType.File)

    def claim(self, parent: str, number: int) -> int:
        """Claim a number that no other writer gets, with puts and lists only.

        A writer puts a claim on a number, then lists all claims on it. If it sees only its own claim, it gets the number: later writers
        see this claim, which stays forever. If it sees an earlier claim, it withdraws its own and tries the next number. If its claim is
        the earliest, it waits until the others withdraw theirs. They may be dead, so after 3 s it tries the next number, too. So a wrong
        clock or a dead writer wastes at most a number.

        Args:
            parent: parent of the numbered folders.
            number: the first number to try.

        Returns:
            `number`, or a later one.
        """
        while not self._won(f"{parent}/{CLAIMS}/{number}"):
            number += 1
        return number

    def _won(self, claims: str) -> bool:
        token = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        self.put(f"{claims}/{token}", b"")
        deadline = time.monotonic() + _CLAIM_TIMEOUT_S
        while True:
            present = self.retry.attempt(f"list {self.path(claims)}", lambda: self._names(claims))
            if present == {token}:
                return True
            if min(present, default=token) < token or time.monotonic() > deadline:
                self.retry.attempt(f"withdraw a claim in {self.path(claims)}", lambda: self._delete(f"{claims}/{token}"))
                return False
            time.sleep(_POLL_S)

    def _names(self, folder: str) -> set[str]:
        return {entry.base_name for entry in self.file_system.get_file_info(FileSelector(self.path(folder)))}

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.file_system.delete_file(self.path(path))

    def _put(self, path: str, content: bytes | mmap.mmap) -> None:
        with self.file_system.open_output_stream(self.path(path)) as stream:
            # One call, because Ctrl-C does not interrupt it: closing a stream, even after an exception, puts the part written so far.
            stream.write(content)

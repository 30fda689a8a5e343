"""Writing to an object store, which has neither rename nor lock, but each put is all or nothing and seen by all from then on."""

from __future__ import annotations

import mmap
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pyarrow.fs import FileSelector, FileSystem

from cifar_ray.storage.retry import Retry

CLAIMS = ".claims"

_GIVE_UP_S = 3.0
_POLL_S = 0.05


@dataclass(frozen=True)
class ObjectWriter:
    """Puts, and numbers that are given once.

    Attributes:
        file_system: of an object store.
        path: how it names a file of the tree.
        retry: of what fails for a moment.
    """

    file_system: FileSystem
    path: Callable[[str], str]
    retry: Retry

    def put(self, path: str, content: bytes | mmap.mmap) -> None:
        """Writes a file whole, or not at all."""
        self.retry.attempt(f"write {self.path(path)}", lambda: self._put(path, content))

    def claim(self, parent: str, number: int) -> int:
        """Takes a number that nobody else gets, without anything but puts and lists.

        Who wants a number puts a claim on it, then looks who else does. It is his who once sees himself alone: whoever
        comes later sees that claim, which stays for ever. Of several the earliest waits for the others to take theirs back and go on
        to the next number, for some seconds: they may be dead. So a clock that is wrong, or a writer that dies, costs a number at worst.

        Args:
            parent: of the numbered folders.
            number: the first to try.

        Returns:
            `number`, or one after it.
        """
        while not self._won(f"{parent}/{CLAIMS}/{number}"):
            number += 1
        return number

    def _won(self, claims: str) -> bool:
        token = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        self.put(f"{claims}/{token}", b"")
        deadline = time.monotonic() + _GIVE_UP_S
        while True:
            present = self.retry.attempt(f"list {self.path(claims)}", lambda: self._names(claims))
            if present == {token}:
                return True
            if min(present, default=token) < token or time.monotonic() > deadline:
                self.retry.attempt(f"take back a claim in {self.path(claims)}", lambda: self._delete(f"{claims}/{token}"))
                return False
            time.sleep(_POLL_S)

    def _names(self, folder: str) -> set[str]:
        return {entry.base_name for entry in self.file_system.get_file_info(FileSelector(self.path(folder)))}

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.file_system.delete_file(self.path(path))

    def _put(self, path: str, content: bytes | mmap.mmap) -> None:
        with self.file_system.open_output_stream(self.path(path)) as stream:
            # in one call, which no Ctrl-C interrupts: closing a stream, also after an exception, puts what it got so far
            stream.write(content)

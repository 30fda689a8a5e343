"""The names of a job's pictures, in numbered files of some hundred names each, so that no process holds all names in memory."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree

_LISTED = "listed.json"


class NameFiles:
    """The names of a job's pictures at `<storage>/<folder>/`.

    Args:
        storage: path or URI.
        folder: relative to it.

    Raises:
        StoreError: from every method, if the storage refuses the operation or cannot be reached.
    """

    def __init__(self, storage: str, folder: str) -> None:
        self._where = (storage, folder)
        self._files = FileTree(storage, folder)
        self._token = ""

    def __reduce__(self) -> tuple[type[NameFiles], tuple[str, str]]:
        return NameFiles, self._where  # file systems stay in their process

    def sizes(self) -> tuple[int, int] | None:
        """Number of pictures, and number of names per file (the last may have fewer); `None` until all are written."""
        data = self._files.read(_LISTED)
        if data is None:
            return None
        content: dict[str, Any] = json.loads(data)
        self._token = content["token"]
        return content["pictures"], content["part_size"]

    def write(self, names: Iterable[str], part_size: int, on_written: Callable[[int], None] = lambda _: None) -> int:
        """Write all names. If several processes write, the first one to finish wins, and files of the others are never used.

        Args:
            names: names of the pictures; taken one by one.
            part_size: number of names in a file.
            on_written: receives the number of names so far, after each file.

        Returns:
            Number of names that the winning process wrote.
        """
        token, rest, count, number = secrets.token_hex(4), iter(names), 0, 0
        while some := list(islice(rest, part_size)):
            # JSON in ASCII: file names that are not UTF-8 contain lone surrogates, which UTF-8 cannot encode.
            self._files.replace(_name(token, number), json.dumps(some).encode())
            number, count = number + 1, count + len(some)
            on_written(count)
        mine = json.dumps({"pictures": count, "part_size": part_size, "token": token}).encode()
        return int(json.loads(self._files.update(_LISTED, lambda present: present or mine))["pictures"])

    def names(self, number: int) -> tuple[str, ...]:
        """The names in a file.

        Raises:
            StoreError: if the file is missing.
        """
        if not self._token:
            self.sizes()
        data = self._files.read(_name(self._token, number))
        if data is None:
            raise StoreError(f"{self._files.path(_name(self._token, number))} is missing")
        return tuple(json.loads(data))


def _name(token: str, number: int) -> str:
    return f"{token}/{number:06d}.json"

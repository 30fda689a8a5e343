"""`Pictures`: which pictures there are, in arrays, and how to read each of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_ray.config import printable


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that are not read yet.

    Attributes:
        root: folder of the data set.
        names: bytes `[N]`, path of each picture relative to it.
    """

    root: Path
    names: npt.NDArray[np.bytes_]

    @classmethod
    def of_files(cls, root: Path, files: Iterable[Path]) -> Pictures:
        """Files below a folder."""
        return cls(root, np.array([os.fsencode(file.relative_to(root)) for file in files], np.bytes_))

    @classmethod
    def join(cls, parts: Sequence[Pictures]) -> Pictures:
        """The pictures of several parts of one data set, one after the other."""
        return replace(parts[0], names=np.concatenate([part.names for part in parts]))

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: npt.NDArray[np.int64 | np.bool_] | slice) -> Pictures:
        """The pictures at some rows."""
        return replace(self, names=self.names[rows])

    def relative_to(self, root: Path) -> Pictures:
        """The same pictures, named relative to a folder above theirs."""
        if root == self.root:
            return self
        inner = os.fsencode(self.root.relative_to(root)) + b"/"
        return replace(self, root=root, names=np.char.add(inner, self.names))

    def source(self, row: int) -> Path | bytes:
        """The picture as `decode_square` takes it: its file, or its content."""
        return Path(os.fsdecode(self.path(row)))

    def path(self, row: int) -> bytes:
        """Path of a picture with the folder."""
        return os.path.join(os.fsencode(self.root), self.names[row])  # noqa: PTH118  # a Path for each of a million would take seconds

    def where(self, row: int) -> str:
        """Where a picture is, for messages."""
        return printable(self.path(row))

    def is_file(self, row: int) -> bool:
        """Whether a picture is there."""
        return os.path.isfile(self.path(row))  # noqa: PTH113

    def num_bytes(self, row: int) -> int:
        """Size of a picture; 0 if it is missing."""
        return (self.state(row) or (0, 0))[0]

    def state(self, row: int) -> tuple[int, int] | None:
        """Size in bytes and modification time in ns of the file of a picture; `None` if it is missing."""
        try:
            found = os.stat(self.path(row))  # noqa: PTH116
        except OSError:  # for example a dangling link: decoding will report it
            return None
        return found.st_size, found.st_mtime_ns

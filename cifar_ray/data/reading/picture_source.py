"""`Pictures`: the paths of many pictures in arrays, and how to read each picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cifar_ray.config import printable
from cifar_ray.errors import DataError, ImageError
from cifar_ray.storage import FileTree

Names = npt.NDArray[np.bytes_]
Rows = npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice
State = tuple[int, int]  # size in bytes, modification time in ns


_MAX_OPENED = 64  # files of an object store that stay open
_STATED = 1000  # approximate number of files whose size and time are read, if there are many


@dataclass(frozen=True, eq=False)
class Spans:
    """Parts of files: members of tars, or cells of tables.

    Attributes:
        files: paths relative to the folder of the data set; an absolute one is a file of the local cache.
        file: int32 `[N]`, index into `files` of each part.
        start: int64 `[N]`, offset of the first byte of each part.
        size: int64 `[N]`, number of bytes of each part.
    """

    files: tuple[str, ...]
    file: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[Spans]) -> Spans:
        """Concatenate several spans."""
        files = tuple(dict.fromkeys(file for part in parts for file in part.files))
        number_of = {file: number for number, file in enumerate(files)}
        numbers = [np.array([number_of[file] for file in part.files], np.int32)[part.file] for part in parts]
        start, size = (np.concatenate(arrays) for arrays in zip(*((part.start, part.size) for part in parts), strict=True))
        return cls(files, np.concatenate(numbers), start, size)

    def take(self, rows: Rows) -> Spans:
        """The parts at some rows."""
        return Spans(self.files, self.file[rows], self.start[rows], self.size[rows])


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures that are not read yet.

    Attributes:
        root: folder of the data set: a path, or the URI of an object store.
        names: bytes `[N]`, path of each picture relative to `root`; the path of a tar member starts with the path of the tar.
        spans: positions of the pictures, if they are parts of files; `None` if each picture is a file.
    """

    root: Path | str
    names: Names
    spans: Spans | None = None

    @classmethod
    def of_files(cls, root: Path, files: Iterable[Path]) -> Pictures:
        """Pictures that are files below a folder."""
        return cls(root, np.array([os.fsencode(file.relative_to(root)) for file in files], np.bytes_))

    @classmethod
    def join(cls, parts: Sequence[Pictures]) -> Pictures:
        """Concatenate the pictures of several parts of one data set; either all are files, or none is."""
        spans = [part.spans for part in parts if part.spans is not None]
        return cls(parts[0].root, np.concatenate([part.names for part in parts]), Spans.join(spans) if spans else None)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_remote(self) -> bool:
        """Whether reading a picture waits for an object store."""
        return isinstance(self.root, str)

    def take(self, rows: Rows) -> Pictures:
        """The pictures at some rows."""
        return replace(self, names=self.names[rows], spans=self.spans and self.spans.take(rows))

    def relative_to(self, root: Path | str) -> Pictures:
        """The same pictures, with paths relative to `root`, a folder above theirs; in an object store unchanged."""
        if root == self.root or isinstance(root, str) or isinstance(self.root, str):
            return self
        inner = os.fsencode(self.root.relative_to(root)) + b"/"
        return replace(self, root=root, names=np.char.add(inner, self.names))

    def source(self, row: int) -> Path | bytes:
        """Path or content of a picture, as `decode_square` takes it.

        Raises:
            ImageError: if the picture is missing or cut off.
            StoreError: if the object store cannot be reached.
        """
        if self.spans is None:
            return self._content(row) if isinstance(self.root, str) else Path(os.fsdecode(self.path(row)))
        file, start, size = self.spans.files[self.spans.file[row]], int(self.spans.start[row]), int(self.spans.size[row])
        if isinstance(self.root, str) and not file.startswith("/"):
            content = _open_parts(self.root, file)(start, size)
        else:
            content = _read_part(os.path.join(self.root, file), start, size)  # noqa: PTH118
        if len(content) < size:
            raise ImageError(f"{self.where(row)}: {file} is missing, or was cut off")
        return content

    def _content(self, row: int) -> bytes:
        content = open_tree(str(self.root)).read(os.fsdecode(self.names[row]))
        if content is None:
            raise ImageError(f"{self.where(row)}: no such object")
        return content

    def path(self, row: int) -> bytes:
        """Path of a picture, including the folder."""
        return os.path.join(_base(self.root), self.names[row])  # noqa: PTH118  # a Path for each of a million would take seconds

    def where(self, row: int) -> str:
        """Path of a picture for messages."""
        return printable(self.path(row))

    def fingerprint(self, most: int | None) -> bytes:
        """sha256 of names, sizes and modification times; if there are more than `most` files, only some sizes and times count."""
        digest = hashlib.sha256(self.names.tobytes())
        files = self
        if self.spans is not None:
            for array in (self.spans.file, self.spans.start, self.spans.size):
                digest.update(array.tobytes())
            # The name of a file in the local cache already contains the size and time of its source.
            own = [os.fsencode(file) for file in self.spans.files if not file.startswith("/")]
            digest.update("\0".join(self.spans.files).encode())
            files = Pictures(self.root, np.array(own, np.bytes_))
        elif most is not None and len(self) > most:
            files = self.take(slice(None, None, len(self) // _STATED))
        digest.update(np.array([state or (-1, -1) for state in files.states()], np.int64).tobytes())
        return digest.digest()

    def states(self) -> list[State | None]:
        """Size and modification time of each file, for pictures that are files; `None` for a missing file."""
        if isinstance(self.root, str):
            return open_tree(self.root).states([os.fsdecode(name) for name in self.names])
        return [_state(self.path(row)) for row in range(len(self))]

    def are_files(self, rows: Sequence[int]) -> list[bool]:
        """Whether the file of each picture in `rows` exists."""
        if isinstance(self.root, str):
            return open_tree(self.root).have_files([os.fsdecode(self.names[row]) for row in rows])
        return [os.path.isfile(self.path(row)) for row in rows]  # noqa: PTH113

    def num_bytes(self, row: int) -> int:
        """Size of a picture in bytes; 0 if it is missing."""
        if self.spans is not None:
            return int(self.spans.size[row])
        return (self.take(slice(row, row + 1)).states()[0] or (0, 0))[0]


@lru_cache(_MAX_OPENED)
def _open_parts(uri: str, file: str) -> Callable[[int, int], bytes]:
    return open_tree(uri).open_parts(file)


def parse_location(data_dir: str) -> Path | str:
    """Convert a location to the type that these functions take: `Path` for a local one, `str` for the URI of an object store."""
    return data_dir if "://" in data_dir else Path(data_dir)


def where(root: Path | str, name: str) -> str:
    """Path of a file for messages."""
    return printable(os.path.join(_base(root), os.fsencode(name)))  # noqa: PTH118


def _base(root: Path | str) -> bytes:
    return os.fsencode(root.partition("?")[0] if isinstance(root, str) else root)


def open_file(root: Path | str, name: str) -> pa.NativeFile:
    """Open a file for random access; a local file is memory-mapped.

    Raises:
        OSError: if a local file cannot be read.
        StoreError: if an object cannot be read.
    """
    if isinstance(root, str):
        return open_tree(root).open(name)
    path = root / name
    return pa.memory_map(str(path)) if path.stat().st_size else pa.BufferReader(b"")


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Turn errors of reading a file that is missing, damaged or cut off into a `DataError` of one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(f"{file}: cannot be read ({reason}); copy it again") from None


@cache
def open_tree(uri: str) -> FileTree:
    """The files of an object store, opened once for each process."""
    return FileTree(uri, "")


def _state(path: bytes) -> State | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:  # for example a dangling link: decoding will report it
        return None
    return found.st_size, found.st_mtime_ns


def _read_part(path: str, start: int, size: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return os.pread(file.fileno(), size, start)
    except OSError:
        return b""

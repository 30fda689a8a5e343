"""`<storage>`: files under one root, on a local path or on an object store.

Reading goes through pyarrow.fs everywhere. Writing differs: a local or network file system has an atomic rename,
and needs fsync before it; an object store has neither, but a put is all or nothing. Paths are relative to the root.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from cifar_ray.errors import StoreError

NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_COPY_BYTES = 1 << 20
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class FileTree:
    """The files below one folder of a storage. Creates nothing until something is written.

    Args:
        storage: an absolute path, or a URI that pyarrow knows (`file:///…`, `s3://bucket/…?region=…`, `gs://…`).
        folder: the root, relative to the storage; empty for the storage itself.

    Attributes:
        file_system: pyarrow's, in which `path` names files.

    Whatever a link or a name says: for reading, nothing outside the root is there, and nothing is written or deleted there.
    The root itself may be a link.

    Raises:
        StoreError: from every method, when the storage refuses or cannot be reached, or a path to write leads outside.
    """

    def __init__(self, storage: str, folder: str) -> None:
        with _reporting(f"use {storage} as storage"):
            self.file_system, base = FileSystem.from_uri(storage) if "://" in storage else (LocalFileSystem(), storage)
        self._root = f"{base}/{folder}".rstrip("/")
        self._is_local = isinstance(self.file_system, LocalFileSystem)

    def path(self, relative: str = "") -> str:
        """Where a file lies, as the file system names it."""
        return f"{self._root}/{relative}" if relative else self._root

    def read(self, path: str) -> bytes | None:
        """A whole file; `None` where there is none."""
        if not self._is_inside(path):
            return None
        with _reporting(f"read {self.path(path)}"):
            try:
                with self.file_system.open_input_stream(self.path(path)) as stream:
                    data: bytes = stream.readall()
            except FileNotFoundError:
                return None
            return data

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below `path`, left out what is hidden or leads outside; none where `path` is missing."""
        with _reporting(f"list {self.path(path)}"):
            entries = self.file_system.get_file_info(FileSelector(self.path(path), allow_not_found=True))
        folders = [entry.base_name for entry in entries if entry.type == FileType.Directory and not entry.base_name.startswith(".")]
        return sorted(folder for folder in folders if self._is_inside(f"{path}/{folder}"))

    def numbers(self, path: str) -> list[int]:
        """The numbered folders below `path`, ascending."""
        return sorted(int(folder) for folder in self.folders(path) if NUMBER.fullmatch(folder))

    def have_files(self, paths: list[str]) -> list[bool]:
        """Which of `paths` are files, and inside; one round of questions for all."""
        with _reporting(f"look into {self._root}"):
            entries = self.file_system.get_file_info([self.path(path) for path in paths])
        return [entry.type == FileType.File and self._is_inside(path) for path, entry in zip(paths, entries, strict=True)]

    def replace(self, path: str, data: bytes) -> None:
        """Writes a file such that readers see the old content or the new, never a part."""
        with self.writing(path) as file:
            file.write(data)

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """As `replace`, for a content that is made piece by piece: it takes its place when the block ends, and is dropped if that fails."""
        with _reporting(f"write {self.path(path)}"):
            if not self._is_local:
                with tempfile.TemporaryFile() as staged:
                    yield staged
                    staged.seek(0)
                    self._put(path, staged)
                return
            self._check_inside(path.rpartition("/")[0])  # a link in the file's own place is replaced, not followed
            target = Path(self.path(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            staging = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
            try:
                with staging.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                staging.replace(target)
            except BaseException:
                staging.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)

    def add_numbered(self, parent: str, files: Mapping[str, bytes]) -> int:
        """Writes files as a new folder `<parent>/<number>`, under a number never used before.

        Locally the folder is staged under a hidden name and appears whole, by one rename; of two writers at once, the
        one whose number is taken goes on to the next. On an object store the files are put in the order given, so the
        last one commits; two writers at the very same time may there take the same number, and the later one stays.

        Returns:
            The number, from 1.
        """
        with _reporting(f"write to {self.path(parent)}"):
            if not self._is_local:
                number = self._next_number(parent)
                for name, data in files.items():
                    self._put(f"{parent}/{number}/{name}", io.BytesIO(data))
                return number
            self._check_inside(parent)
            staging = Path(self.path(parent)) / f".staging-{uuid.uuid4().hex}"
            staging.mkdir(parents=True)
            try:
                for name, data in files.items():
                    _write_durably(staging / name, data)
                _sync_folder(staging)
                number = self._rename_to_next(staging, parent)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _sync_folder(staging.parent)
            return number

    def clear_folder(self, path: str, first: str) -> None:
        """Removes the file `first`, then all else in a folder. The empty folder stays: its number is never given again."""
        with _reporting(f"delete {self.path(path)}"):
            self._check_inside(path)
            self.file_system.delete_file(self.path(f"{path}/{first}"))
            self.file_system.delete_dir_contents(self.path(path))

    def remove(self) -> None:
        """Deletes the root with all that is in it."""
        with _reporting(f"delete {self._root}"):
            self.file_system.delete_dir(self._root)

    def _is_inside(self, path: str) -> bool:
        """Whether a path stays below the root, links and `..` followed to where they lead. An object store has neither."""
        if not self._is_local:
            return True
        root = os.path.realpath(self._root or "/")
        return os.path.commonpath([root, os.path.realpath(self.path(path))]) == root

    def _check_inside(self, path: str) -> None:
        if not self._is_inside(path):
            raise StoreError(f"{self.path(path)} leads out of {self._root}, where nothing is written")

    def _next_number(self, parent: str) -> int:
        return max(self.numbers(parent), default=0) + 1

    def _rename_to_next(self, staging: Path, parent: str) -> int:
        number = self._next_number(parent)
        while True:
            try:
                staging.rename(staging.with_name(str(number)))
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                number += 1
            else:
                return number

    def _put(self, path: str, content: IO[bytes]) -> None:
        self.file_system.create_dir(self.path(path).rpartition("/")[0], recursive=True)
        with self.file_system.open_output_stream(self.path(path)) as stream:
            shutil.copyfileobj(content, stream, _COPY_BYTES)


@contextmanager
def _reporting(action: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ArrowException) as error:
        raise StoreError(f"cannot {action}: {' '.join(str(error).split())}") from error


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """A rename survives a power cut only once its folder is on disk too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""`<storage>`: files under one root, on a local path or on an object store.

Reading goes through pyarrow.fs everywhere. Writing differs: a local or network file system has an atomic rename,
and needs fsync before it; an object store has neither, but a put is all or nothing. Paths are relative to the root.
"""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from cifar_ray.errors import StoreError
from cifar_ray.storage import local
from cifar_ray.storage.objects import CLAIMS, ObjectWriter
from cifar_ray.storage.retry import Retry, as_store_error

NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class FileTree:
    """The files below one folder of a storage. Creates nothing until something is written.

    Args:
        storage: an absolute path, or a URI that pyarrow knows (`file:///…`, `s3://bucket/…?region=…`, `gs://…`).
        folder: the root, relative to the storage; empty for the storage itself.
        timeout_s: how long one operation is retried while the storage cannot be reached or is full;
            `None` takes `$CIFAR_RAY_STORAGE_PATIENCE_S`, else 60 s.

    Attributes:
        file_system: pyarrow's, in which `path` names files.

    Whatever a link or a name says: for reading, nothing outside the root is there, and nothing is written or deleted there.
    The root itself may be a link.

    Raises:
        StoreError: from every method, when the storage refuses or stays out of reach, or a path to write leads outside.
    """

    def __init__(self, storage: str, folder: str, timeout_s: float | None = None) -> None:
        with as_store_error(f"use {storage} as storage"):
            self.file_system, base = FileSystem.from_uri(storage) if "://" in storage else (LocalFileSystem(), storage)
        self._root = f"{base.rstrip('/')}/{folder}".rstrip("/")
        self._retry = Retry(timeout_s)
        self._objects = None if isinstance(self.file_system, LocalFileSystem) else ObjectWriter(self.file_system, self.path, self._retry)

    @classmethod
    def of_file(cls, location: str) -> tuple[FileTree, str]:
        """The folder of a file, and the file's name there, from its path or URI."""
        parent, name = split_location(location)
        return cls(parent, ""), name

    def path(self, relative: str = "") -> str:
        """Where a file lies, as the file system names it."""
        return f"{self._root}/{relative}" if relative else self._root

    def read(self, path: str) -> bytes | None:
        """A whole file; `None` where there is none."""

        def read() -> bytes | None:
            try:
                with self.file_system.open_input_stream(self.path(path)) as stream:
                    data: bytes = stream.readall()
            except FileNotFoundError:
                return None
            return data

        return self._retry.attempt(f"read {self.path(path)}", read) if self._is_inside(path) else None

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below `path`, left out what is hidden or leads outside; none where `path` is missing."""
        selector = FileSelector(self.path(path), allow_not_found=True)
        entries = self._retry.attempt(f"list {self.path(path)}", lambda: self.file_system.get_file_info(selector))
        folders = [entry.base_name for entry in entries if entry.type == FileType.Directory and not entry.base_name.startswith(".")]
        return sorted(folder for folder in folders if self._is_inside(f"{path}/{folder}"))

    def numbers(self, path: str) -> list[int]:
        """The numbered folders below `path`, ascending."""
        return sorted(int(folder) for folder in self.folders(path) if NUMBER.fullmatch(folder))

    def have_files(self, paths: list[str]) -> list[bool]:
        """Which of `paths` are files, and inside; one round of questions for all."""
        full = [self.path(path) for path in paths]
        entries = self._retry.attempt(f"look into {self._root}", lambda: self.file_system.get_file_info(full))
        return [entry.type == FileType.File and self._is_inside(path) for path, entry in zip(paths, entries, strict=True)]

    def replace(self, path: str, data: bytes) -> None:
        """Writes a file such that readers see the old content or the new, never a part."""
        if self._objects:
            self._objects.put(path, data)
            return

        def write() -> None:
            with self._staged(path) as file:
                file.write(data)

        self._retry.attempt(f"write {self.path(path)}", write)

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """As `replace`, for a content that is made piece by piece: it takes its place when the block ends, and is dropped if that fails.

        What fails inside the block is not tried again.
        """
        with as_store_error(f"write {self.path(path)}"):
            if not self._objects:
                with self._staged(path) as file:
                    yield file
                return
            with tempfile.TemporaryFile() as file:
                yield file
                file.flush()
                is_empty = os.fstat(file.fileno()).st_size == 0  # which cannot be mapped
                self._objects.put(path, b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def add_numbered(self, parent: str, files: Mapping[str, bytes]) -> int:
        """Writes files as a new folder `<parent>/<number>`, under a number never used before, whoever else writes at the same time.

        On a file system the folder appears whole, by one rename. On an object store the number is claimed, then the files are put in the
        order given, so the last one commits. What dead writers have left half written is swept before.

        Returns:
            The number, from 1.
        """
        self._check_inside(parent)
        self._sweep(parent, last=list(files)[-1])
        if self._objects:
            number = self._objects.claim(parent, self._next_number(parent))
            for name, data in files.items():
                self._objects.put(f"{parent}/{number}/{name}", data)
            return number
        folder = Path(self.path(parent))
        action = f"write to {folder}"
        number = self._retry.attempt(action, lambda: local.add_folder(folder, files, lambda: self._next_number(parent)))
        self._retry.attempt(action, lambda: local.sync_folder(folder))
        return number

    def clear_folder(self, path: str, first: str) -> None:
        """Removes the file `first`, then all else in a folder. Its number is never given again: an empty folder stays, or a claim."""
        self._check_inside(path)

        def delete() -> None:
            with suppress(FileNotFoundError):  # an attempt before was carried out, but not answered
                self.file_system.delete_file(self.path(f"{path}/{first}"))

        self._retry.attempt(f"delete {self.path(path)}", delete)
        self._empty(path)

    def remove(self) -> None:
        """Deletes the root with all that is in it, if it is there."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.file_system.delete_dir(self._root)

        self._retry.attempt(f"delete {self._root}", delete)

    @contextmanager
    def _staged(self, path: str) -> Iterator[IO[bytes]]:
        self._check_inside(path.rpartition("/")[0])  # a link in the file's own place is replaced, not followed
        with local.staged_file(Path(self.path(path))) as file:
            yield file

    def _sweep(self, parent: str, last: str) -> None:
        """Empties numbered folders where nothing happened for a day though they lack the file `last`, which comes last and goes first."""
        numbers = self.numbers(parent)
        complete = self.have_files([f"{parent}/{number}/{last}" for number in numbers])
        for number in (number for number, is_complete in zip(numbers, complete, strict=True) if not is_complete):
            if self._is_stale(f"{parent}/{number}"):
                with suppress(StoreError):  # who may write may not always delete
                    self._empty(f"{parent}/{number}")

    def _empty(self, path: str) -> None:
        self._retry.attempt(f"delete {self.path(path)}", lambda: self.file_system.delete_dir_contents(self.path(path)))

    def _is_stale(self, path: str) -> bool:
        """Whether there are files below, and none of the last day."""
        selector = FileSelector(self.path(path), allow_not_found=True, recursive=True)
        entries = self._retry.attempt(f"list {self.path(path)}", lambda: self.file_system.get_file_info(selector))
        written = [entry.mtime for entry in entries if entry.type == FileType.File]
        return bool(written) and max(written) < datetime.now(UTC) - timedelta(seconds=local.A_DAY_S)

    def _is_inside(self, path: str) -> bool:
        """Whether a path stays below the root, links and `..` followed to where they lead. An object store has neither."""
        if self._objects:
            return True
        root = os.path.realpath(self._root or "/")
        return os.path.commonpath([root, os.path.realpath(self.path(path))]) == root

    def _check_inside(self, path: str) -> None:
        if not self._is_inside(path):
            raise StoreError(f"{self.path(path)} leads out of {self._root}, where nothing is written")

    def _next_number(self, parent: str) -> int:
        claimed = self.numbers(f"{parent}/{CLAIMS}") if self._objects else []
        return max([*self.numbers(parent), *claimed], default=0) + 1


def split_location(location: str) -> tuple[str, str]:
    """A path or URI without its last part, and that part; what follows a URI's `?` stays with the former."""
    location, mark, query = location.partition("?") if "://" in location else (location, "", "")
    parent, _, name = location.rpartition("/")
    return f"{parent or '/'}{mark}{query}", name

"""`FileTree`: files under one root, on a local path or in an object store.

All reads use pyarrow.fs. Writes differ: a local or network file system has an atomic rename, and needs fsync before it; an object
store has neither, but a put is atomic. Paths are relative to the root.
"""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from pyarrow import NativeFile
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from cifar_ray.errors import StoreError
from cifar_ray.storage import local
from cifar_ray.storage.objects import CLAIMS, ObjectWriter
from cifar_ray.storage.retry import Retry, as_store_error

NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class FileTree:
    """The files below one folder of a storage. The first write creates the folder.

    Args:
        storage: an absolute path, or a URI that pyarrow supports (`file:///…`, `s3://bucket/…?region=…`, `gs://…`).
        folder: the root, relative to the storage; empty for the storage itself.
        timeout_s: timeout for retries of one operation while the storage cannot be reached or is full;
            `None` takes `$CIFAR_RAY_STORAGE_PATIENCE_S`, else 60 s.

    Attributes:
        file_system: pyarrow's file system; `path` gives paths in it.

    Links and `..` cannot lead out of the root: files outside it are invisible for reading, and are never written or deleted.
    The root itself may be a link.

    Raises:
        StoreError: from every method, if the storage refuses the operation, cannot be reached, or a path for writing is outside the root.
    """

    def __init__(self, storage: str, folder: str, timeout_s: float | None = None) -> None:
        with as_store_error(f"use {storage} as storage"):
            self.file_system, base = FileSystem.from_uri(storage) if "://" in storage else (LocalFileSystem(), storage)
        self._root = f"{base.rstrip('/')}/{folder}".rstrip("/")
        self._retry = Retry(timeout_s)
        self._objects = (
            None if isinstance(self.file_system, LocalFileSystem) else ObjectWriter(storage, self.file_system, self.path, self._retry)
        )

    @classmethod
    def of_file(cls, location: str) -> tuple[FileTree, str]:
        """Split a path or URI into the tree of its folder and the file name."""
        parent, name = split_location(location)
        return cls(parent, ""), name

    def path(self, relative: str = "") -> str:
        """Path of a file in the file system."""
        return f"{self._root}/{relative}" if relative else self._root

    def read(self, path: str) -> bytes | None:
        """Read a whole file; `None` if it does not exist."""

        def read() -> bytes | None:
            try:
                with self.file_system.open_input_stream(self.path(path)) as stream:
                    data: bytes = stream.readall()
            except FileNotFoundError:
                return None
            return data

        return self._retry.attempt(f"read {self.path(path)}", read) if self._is_inside(path) else None

    def files(self, *, allow_not_found: bool = False) -> dict[str, tuple[int, int]]:
        """Size in bytes and modification time in ns of each file below the root, by path, sorted; without hidden files and folders.

        Args:
            allow_not_found: return no files if the root does not exist; default: raise an error.
        """
        selector = FileSelector(self._root, allow_not_found, recursive=True)
        entries = self._retry.attempt(f"list {self._root}", lambda: self.file_system.get_file_info(selector))
        found = {entry.path[len(self._root) + 1 :]: (entry.size, entry.mtime_ns) for entry in entries if entry.type == FileType.File}
        return {path: found[path] for path in sorted(found) if not path.startswith(".") and "/." not in path}

    def walk(self, folder: str) -> Iterator[str]:
        """Paths of all files below a folder, one by one, in no particular order; skips hidden files, and links to folders.

        Memory does not grow with the number of files. Errors are not retried.
        """
        with as_store_error(f"list {self.path(folder)}"):
            if self._objects:
                found = self._objects.walk(self.path(folder))
                below = (path[len(self._root) + 1 :] for path in found)
                yield from (path for path in below if not path.startswith(".") and "/." not in path)
            elif self._is_inside(folder):
                base = Path(self.path(folder))
                yield from (f"{folder}/{name}" if folder else name for name in local.walk(base))

    def states(self, paths: Sequence[str]) -> list[tuple[int, int] | None]:
        """Size in bytes and modification time in ns of each of `paths`; `None` if it is not a file. The requests run in parallel."""
        full = [self.path(path) for path in paths]
        entries = self._retry.attempt(f"list {self._root}", lambda: self.file_system.get_file_info(full))
        return [(entry.size, entry.mtime_ns) if entry.type == FileType.File else None for entry in entries]

    def open(self, path: str) -> NativeFile:
        """Open a file for random access; `read_at` may be called from several threads. Reading is not retried."""
        return self._retry.attempt(f"read {self.path(path)}", lambda: self.file_system.open_input_file(self.path(path)))

    def open_parts(self, path: str) -> Callable[[int, int], bytes]:
        """Open a file; returns a thread-safe function (start, size) → the bytes from there, fewer at the end of the file."""
        file = self.open(path)
        return lambda start, size: self._retry.attempt(f"read {self.path(path)}", lambda: bytes(file.read_at(size, start)))

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below `path`, without hidden ones and links to the outside; empty if `path` does not exist."""
        selector = FileSelector(self.path(path), allow_not_found=True)
        entries = self._retry.attempt(f"list {self.path(path)}", lambda: self.file_system.get_file_info(selector))
        folders = [entry.base_name for entry in entries if entry.type == FileType.Directory and not entry.base_name.startswith(".")]
        return sorted(folder for folder in folders if self._is_inside(f"{path}/{folder}"))

    def numbers(self, path: str) -> list[int]:
        """The numbered folders below `path`, ascending."""
        return sorted(int(folder) for folder in self.folders(path) if NUMBER.fullmatch(folder))

    def have_files(self, paths: list[str]) -> list[bool]:
        """Whether each of `paths` is a file inside the root, with one request for all."""
        full = [self.path(path) for path in paths]
        entries = self._retry.attempt(f"list {self._root}", lambda: self.file_system.get_file_info(full))
        return [entry.type == FileType.File and self._is_inside(path) for path, entry in zip(paths, entries, strict=True)]

    def newest(self, paths: list[str]) -> str | None:
        """The file that was written last, with one request for all; `None` if none of `paths` is a file inside the root."""
        full = [self.path(path) for path in paths]
        entries = self._retry.attempt(f"list {self._root}", lambda: self.file_system.get_file_info(full))
        written = [(entry.mtime, path) for path, entry in zip(paths, entries, strict=True) if entry.type == FileType.File]
        return max(((time, path) for time, path in written if self._is_inside(path)), default=(None, None))[1]

    def replace(self, path: str, data: bytes) -> None:
        """Write a file atomically: readers see the old or the new content, never a part."""
        if self._objects:
            self._objects.put(path, data)
            return

        def write() -> None:
            with self._staged(path) as file:
                file.write(data)

        self._retry.attempt(f"write {self.path(path)}", write)

    def update(self, path: str, change: Callable[[bytes | None], bytes]) -> bytes:
        """Replace the content of a file by `change(content)`, and return the new content. No other update happens in between.

        Args:
            path: path of the file.
            change: receives the content, or `None` if there is no file. It may be called several times. If it raises, nothing is written.
        """
        if self._objects:
            return self._objects.update(path, change, self.read)
        folder = path.rpartition("/")[0]
        self._check_inside(folder)
        with local.locked(Path(self.path(folder)), self._retry.timeout_s):
            old = self.read(path)
            content = change(old)
            if content != old:
                self.replace(path, content)
            return content

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """Open a file for writing piece by piece; it replaces the target at the end of the block, or is removed after an error.

        Errors inside the block are not retried.
        """
        with as_store_error(f"write {self.path(path)}"):
            if not self._objects:
                with self._staged(path) as file:
                    yield file
                return
            with tempfile.TemporaryFile() as file:
                yield file
                file.flush()
                is_empty = os.fstat(file.fileno()).st_size == 0  # an empty file cannot be mapped
                self._objects.put(path, b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def add_numbered(self, parent: str, files: Mapping[str, bytes]) -> int:
        """Write files as a new folder `<parent>/<number>` with a number that was never used, even with concurrent writers.

        On a file system the folder appears complete, by one rename. On an object store, the writer claims the number and puts the files
        in the given order, so the last file commits the folder. Files of dead writers in incomplete folders are removed first.

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

    def delete(self, path: str) -> None:
        """Delete a file, if it exists."""
        self._check_inside(path.rpartition("/")[0])

        def delete() -> None:
            with suppress(FileNotFoundError):  # an earlier attempt may have succeeded without a response
                self.file_system.delete_file(self.path(path))

        self._retry.attempt(f"delete {self.path(path)}", delete)

    def clear_folder(self, path: str, first: str) -> None:
        """Remove the file `first`, then all others in a numbered folder. The folder or its claim stays, so the number is not reused."""
        self.delete(f"{path}/{first}")
        self._empty(path)

    def remove(self) -> None:
        """Delete the root and everything in it, if it exists."""

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.file_system.delete_dir(self._root)

        self._retry.attempt(f"delete {self._root}", delete)

    @contextmanager
    def _staged(self, path: str) -> Iterator[IO[bytes]]:
        self._check_inside(path.rpartition("/")[0])  # a link at the path itself is replaced, not followed
        with local.staged_file(Path(self.path(path))) as file:
            yield file

    def _sweep(self, parent: str, last: str) -> None:
        """Empty numbered folders that lack the commit file `last` and are unchanged for a day."""
        numbers = self.numbers(parent)
        complete = self.have_files([f"{parent}/{number}/{last}" for number in numbers])
        for number in (number for number, is_complete in zip(numbers, complete, strict=True) if not is_complete):
            if self._is_stale(f"{parent}/{number}"):
                with suppress(StoreError):  # a writer may lack permission to delete
                    self._empty(f"{parent}/{number}")

    def _empty(self, path: str) -> None:
        self._retry.attempt(f"delete {self.path(path)}", lambda: self.file_system.delete_dir_contents(self.path(path)))

    def _is_stale(self, path: str) -> bool:
        """Whether a folder has files, and none is newer than a day."""
        selector = FileSelector(self.path(path), allow_not_found=True, recursive=True)
        entries = self._retry.attempt(f"list {self.path(path)}", lambda: self.file_system.get_file_info(selector))
        written = [entry.mtime for entry in entries if entry.type == FileType.File]
        return bool(written) and max(written) < datetime.now(UTC) - timedelta(seconds=local.A_DAY_S)

    def _is_inside(self, path: str) -> bool:
        """Whether a path is below the root after resolving links and `..`; an object store has neither."""
        if self._objects:
            return True
        root = os.path.realpath(self._root or "/")
        return os.path.commonpath([root, os.path.realpath(self.path(path))]) == root

    def _check_inside(self, path: str) -> None:
        if not self._is_inside(path):
            raise StoreError(f"{self.path(path)} is outside {self._root}; remove the link that leads there")

    def _next_number(self, parent: str) -> int:
        claimed = self.numbers(f"{parent}/{CLAIMS}") if self._objects else []
        return max([*self.numbers(parent), *claimed], default=0) + 1


def split_location(location: str) -> tuple[str, str]:
    """Split a path or URI into its parent and its last part; the query of a URI stays with the parent."""
    location, separator, query = location.partition("?") if "://" in location else (location, "", "")
    parent, _, name = location.rpartition("/")
    return f"{parent or '/'}{separator}{query}", name

"""Cache on the local disk: each node prepares an entry once, and all its processes read it.

An entry is a folder with a file `entry.json`. A process builds the entry in a temporary folder under a lock, then renames the folder. So
a killed process leaves no entry that looks valid. You may delete any entry at any time; it is built again when it is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from cifar_ray.config import local_path
from cifar_ray.errors import DataError

CACHE_VARIABLE = "CIFAR_RAY_CACHE"

SOURCES, FEATURES, DOWNLOADS = "sources", "features", "downloads"  # folders for everything except decoded data sets
LIMIT_BYTES = (
    50_000_000_000  # for decoded data sets, and as much again for sources; downloads do not count, and features have their own limit
)

_logger = logging.getLogger(__name__)
_Entry = TypeVar("_Entry")


def cache_folder() -> Path:
    """`$CIFAR_RAY_CACHE`, else `$XDG_CACHE_HOME/cifar_ray`, else `~/.cache/cifar_ray`; absolute; it may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return local_path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "cifar_ray"


def load_or_write(entry: str, read: Callable[[Path], _Entry], write: Callable[[Path], None]) -> _Entry:
    """Load an entry of any kind; write it first if it is missing or damaged. Only one process per node writes it.

    Args:
        entry: file name of the entry, or folder and file name; different content must have a different name.
        read: reads the entry from its folder; raises if something is missing or damaged.
        write: writes the entry to an empty folder.

    Raises:
        DataError: if the cache folder cannot be written, or raised by `write`.
    """
    folder = cache_folder() / entry
    found = _try(read, folder)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock")):
            found = _try(read, folder)  # another process may have built it while this one waited
            if found is None:
                _make_room(folder)
                _put_in_place(folder, write)
                found = _try(read, folder)
    except OSError as error:
        raise DataError(
            f"cache folder {folder.parent}: {error.strerror or error}; free some space or set {CACHE_VARIABLE} to another folder"
        ) from None
    if found is None:
        raise DataError(f"cache entry {folder} was deleted during reading; run the command again")
    return found


def check_space(folder: Path, needed_bytes: int) -> None:
    """Check that the disk of an entry has at least `needed_bytes` of free space.

    Raises:
        DataError: if not.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DataError(
            f"cache folder {folder.parent}: {needed_bytes:,} bytes needed, {free:,} free; free some space, or set {CACHE_VARIABLE}"
        )


def _try(read: Callable[[Path], _Entry], folder: Path) -> _Entry | None:
    """The entry, or `None` if it is missing or damaged."""
    try:
        return read(folder)
    except (OSError, EOFError, ValueError, TypeError, KeyError, DataError) as error:
        if folder.exists():
            _logger.warning("cache entry %s is damaged, building it again: %s", folder, error)
        return None


def _make_room(new: Path) -> None:
    """Delete the least recently used entries beside `new` until they take at most `LIMIT_BYTES`; open files stay readable."""
    used = sorted((path.stat().st_atime, path.parent) for path in new.parent.glob("*/entry.json") if path.parent != new)
    sizes = {folder: _size(folder) for _, folder in used}
    total = sum(sizes.values())
    for _, folder in used:
        if total <= LIMIT_BYTES:
            break
        shutil.rmtree(folder, ignore_errors=True)
        total -= sizes[folder]


def _put_in_place(folder: Path, write: Callable[[Path], None]) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir()
    try:
        write(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache: a decoded data set, an index of tables, the features of one network, or all downloads.

    Attributes:
        path: the folder.
        name: name of the folder, for the user.
        about: kind of content, for the user.
        num_bytes: size on disk.
    """

    path: Path
    name: str
    about: str
    num_bytes: int


def list_cache() -> list[CacheEntry]:
    """Everything in the cache, the largest first."""
    root = cache_folder()
    kinds = [
        ("decoded pictures", [path.parent for path in root.glob("*/entry.json")]),
        ("indexes and pictures of tables", [path.parent for path in (root / SOURCES).glob("*/entry.json")]),
        ("features", list((root / FEATURES).glob("*/"))),
        ("downloads", [root / DOWNLOADS] if (root / DOWNLOADS).is_dir() else []),
    ]
    entries = [CacheEntry(path, path.name, about, _size(path)) for about, paths in kinds for path in paths]
    return sorted(entries, key=lambda entry: -entry.num_bytes)


def clear_cache(*, downloads: bool = False) -> int:
    """Delete everything in the cache, but downloads only if `downloads` is true; returns the number of bytes freed."""
    freed = 0
    for entry in list_cache():
        if entry.about != "downloads" or downloads:
            shutil.rmtree(entry.path, ignore_errors=True)
            freed += entry.num_bytes
    return freed


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.info("waiting for another process to prepare %s", path.stem)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

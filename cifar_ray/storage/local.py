"""Atomic writes on a file system: write under a hidden name, fsync, then rename.

A writer holds a lock on its staging file; the kernel releases the lock when the writer dies. So the next writer can recognise and
remove abandoned staging files first, which frees space on a full disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cifar_ray.errors import StoreError

STAGING = ".staging-"
A_DAY_S = 86_400.0

_LOCK_FILE = ".lock"
_SETTLE_S = 60.0  # maximum time between creating a staging folder and locking it; generous
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextmanager
def staged_file(target: Path) -> Iterator[IO[bytes]]:
    """Open a staging file; it replaces the target at the end of the block, or is removed after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    staging = target.with_name(_staging_name())
    try:
        with staging.open("wb") as file:
            _hold(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            staging.replace(target)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def walk(folder: Path) -> Iterator[str]:
    """Relative paths of all files below a folder, without hidden ones; links to files are files, links to folders are left out."""
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        with os.scandir(folder / parent) as entries:
            for entry in entries:
                path = f"{parent}/{entry.name}" if parent else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif not (entry.is_symlink() and Path(entry.path).is_dir()):
                    yield path


@contextmanager
def locked(folder: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a folder, which excludes other processes and threads, on NFS also those of other hosts.

    The kernel releases the lock of a process that dies. On a file system without locks, nothing is excluded.

    Raises:
        StoreError: if the lock is not free in time, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # imports asyncio, which most commands do without

    lock = FileLock(folder / _LOCK_FILE, timeout=timeout_s, mode=0o666)  # other users change the same storage
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StoreError(f"another process has held {folder / _LOCK_FILE} for {timeout_s:g} s; try again, or stop that process") from None
    except NotImplementedError:  # this file system has no locks
        pass
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def add_folder(parent: Path, files: Mapping[str, bytes], first_free: Callable[[], int]) -> int:
    """Write files as a new numbered folder, which becomes visible only when it is complete; `sync_folder` makes its name durable.

    Returns:
        The number: `first_free()`, or a later one if another writer took that number first.
    """
    _sweep(parent)
    staging = parent / _staging_name()
    staging.mkdir(parents=True)
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        _hold(descriptor)
        for name, data in files.items():
            _write_durably(staging / name, data)
        os.fsync(descriptor)
        return _rename_to_free(staging, first_free())
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Fsync a folder: only then does a rename in it survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove staging files of dead writers, except those it lacks permission to remove."""
    for path in list(folder.glob(f"{STAGING}*")):
        with suppress(OSError):  # it was just renamed, or belongs to another user
            if not _is_abandoned(path):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    """Whether the writer is certainly dead: its lock is free, or, if locks are unreliable, the file is unchanged for a day."""
    age_s = time.time() - path.lstat().st_mtime
    if age_s < _SETTLE_S:
        return False
    lock_is_reliable = path.name.startswith(_staging_name(""))  # on a network file system, locks may apply to one host only
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        lock_is_reliable = False
    return lock_is_reliable or age_s >= A_DAY_S


def _staging_name(unique: str | None = None) -> str:
    return f"{STAGING}{socket.gethostname()}-{uuid.uuid4().hex if unique is None else unique}"


def _hold(descriptor: int) -> None:
    with suppress(OSError):  # NFS does not lock folders
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _rename_to_free(staging: Path, number: int) -> int:
    while True:
        try:
            staging.rename(staging.with_name(str(number)))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            number += 1
        else:
            return number


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

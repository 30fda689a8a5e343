"""Writing to a file system: staged under a hidden name, made durable, then put in place by one rename.

Who stages holds a lock on it, which the kernel gives back when he dies. So the next one can tell what is left over there, and sweeps it
first, which on a full disk makes room.
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

STAGING = ".staging-"
A_DAY_S = 86_400.0

_SETTLE_S = 60.0  # between making a folder and locking it; generous
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextmanager
def staged_file(target: Path) -> Iterator[IO[bytes]]:
    """A file that takes its place when the block ends, and is dropped if that fails."""
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


def add_folder(parent: Path, files: Mapping[str, bytes], first_free: Callable[[], int]) -> int:
    """Writes files as a new numbered folder, which appears whole; `sync_folder` makes its name durable.

    Returns:
        The number: `first_free()`, or one after it where others took that meanwhile.
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
    """A rename survives a power cut only once its folder is on disk too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes what writers that are dead have left half written; what it may not remove, it leaves."""
    for path in list(folder.glob(f"{STAGING}*")):
        with suppress(OSError):  # it took its place just now, or is another user's
            if not _is_abandoned(path):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    """Whether its writer is surely dead: its lock is free, or, where locks say nothing, nothing happened for a day."""
    age_s = time.time() - path.lstat().st_mtime
    if age_s < _SETTLE_S:
        return False
    lock_is_sure = path.name.startswith(_staging_name(""))  # a network file system may keep locks to each host
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        lock_is_sure = False
    return lock_is_sure or age_s >= A_DAY_S


def _staging_name(unique: str | None = None) -> str:
    return f"{STAGING}{socket.gethostname()}-{uuid.uuid4().hex if unique is None else unique}"


def _hold(descriptor: int) -> None:
    with suppress(OSError):  # NFS locks no folders
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

"""Cache of features on the local disk, keyed by network and picture content: unchanged pictures are not computed again."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_ray.data.reading import local_cache as cache

LIMIT_BYTES = 10_000_000_000

_DIGESTS, _PARTIAL, _DIGEST_BYTES = ".digests", ".partial", 16
_LEFT_BEHIND_S = 3600.0
_logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]


class FeatureCache:
    """Features of one network, in pairs of files: `<key>/<name>.npy` has features, `<name>.digests` the digests of their pictures.

    The `.npy` file is written last, under a temporary name, and then renamed; readers ignore a pair without it. If the disk is full or
    read-only, the run continues without the cache.

    Args:
        key: identifies network, weights, view, input size and normalisation; equal keys mean equal features.
    """

    def __init__(self, key: str) -> None:
        self.folder = cache.cache_folder() / cache.FEATURES / key
        self._tables: list[Floats] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for path in sorted(self.folder.glob("*.npy")):
            try:
                digests, values = path.with_suffix(_DIGESTS).read_bytes(), _open(path)
                if len(digests) != len(values) * _DIGEST_BYTES:
                    raise ValueError("its two files differ in length")  # noqa: TRY301
            except FileNotFoundError:
                continue  # another process has deleted the pair to make room
            except (OSError, ValueError, EOFError) as error:
                _logger.warning("feature cache: ignoring %s, which is damaged (%s)", path, error)
                continue
            with contextlib.suppress(OSError):  # a read-only cache still serves reads
                os.utime(path)  # mark as used: `make_room` deletes the least recently used files first
            for row in range(len(values)):
                self._places[digests[row * _DIGEST_BYTES : (row + 1) * _DIGEST_BYTES]] = len(self._tables), row
            self._tables.append(values)

    def find(self, digest: bytes) -> Floats | None:
        """Features of a picture, float32 `[D]`, or `None`."""
        place = self._places.get(digest)
        return None if place is None else self._tables[place[0]][place[1]]

    def add(self, digests: Sequence[bytes], features: Floats) -> None:
        """Store features, float32 `[N, D]`, of the N pictures with `digests`; an error is only logged."""
        name = f"{time.time_ns():x}-{os.getpid():x}-{secrets.token_hex(4)}"
        partial = self.folder / f"{name}{_PARTIAL}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            needed, free = features.nbytes, shutil.disk_usage(self.folder).free
            if needed > free // 2:
                raise OSError(f"{needed:,} bytes needed, {free:,} free")  # noqa: TRY301
            make_room(LIMIT_BYTES - needed)
            (self.folder / f"{name}{_DIGESTS}").write_bytes(b"".join(digests))
            with partial.open("wb") as file:
                np.save(file, features)
            partial.rename(self.folder / f"{name}.npy")
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
                partial.with_suffix(_DIGESTS).unlink(missing_ok=True)
            _logger.warning("feature cache: cannot write %s (%s); the next run computes these features again", self.folder, error)


def _open(path: Path) -> Floats:
    """Map a file of features, float32 `[N, D]`, into memory."""
    values = np.lib.format.open_memmap(path, mode="r")
    if values.ndim != 2 or values.dtype != np.float32:
        raise ValueError(f"it contains {values.dtype} {list(values.shape)}")
    return values.view(np.ndarray)


def digest(image: npt.NDArray[np.uint8]) -> bytes:
    """Digest of a picture's pixels, 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=_DIGEST_BYTES).digest()


def make_room(limit_bytes: int) -> None:
    """Delete the least recently used files until the features of all networks take at most `limit_bytes`."""
    folder = cache.cache_folder() / cache.FEATURES
    for left in folder.glob(f"*/*{_PARTIAL}"):  # left behind by a killed process
        if time.time() - _stat(left)[0] > _LEFT_BEHIND_S:
            left.unlink(missing_ok=True)
            left.with_suffix(_DIGESTS).unlink(missing_ok=True)
    for left in folder.glob(f"*/*{_DIGESTS}"):  # written just before a process was killed
        if not left.with_suffix(".npy").exists() and time.time() - _stat(left)[0] > _LEFT_BEHIND_S:
            left.unlink(missing_ok=True)
    files = sorted((*_stat(path), path) for path in folder.glob("*/*.npy"))
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= limit_bytes:
            break
        path.unlink(missing_ok=True)
        path.with_suffix(_DIGESTS).unlink(missing_ok=True)
        total -= size


def _stat(path: Path) -> tuple[float, int]:
    """Modification time, and size in bytes; now and 0 bytes if another process has deleted the file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return time.time(), 0
    return found.st_mtime, found.st_size

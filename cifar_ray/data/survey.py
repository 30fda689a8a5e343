"""Survey the files of a folder: headers, and pictures that cannot be decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from cifar_ray.data.decode import decode_image
from cifar_ray.data.decoding.formats import open_picture
from cifar_ray.errors import ImageError

_THREADS = 8


@dataclass(frozen=True)
class FileFacts:
    """Facts from the header of one file.

    Attributes:
        path: the file.
        format: for example `JPEG`; empty if the header cannot be read.
        mode: colour mode, for example `RGB`.
        width_px: as stored, before EXIF rotation.
        height_px: as stored, before EXIF rotation.
        num_bytes: size of the file.
    """

    path: Path
    format: str
    mode: str
    width_px: int
    height_px: int
    num_bytes: int


@dataclass(frozen=True)
class BrokenFile:
    """A file that cannot be decoded, and why."""

    path: Path
    reason: str


def read_headers(paths: Iterable[Path], on_read: Callable[[int], None] = lambda _: None) -> list[FileFacts]:
    """Read the header of each file, in order, without decoding pixels."""
    facts = []
    with ThreadPool(_THREADS) as pool:
        for fact in pool.imap(_read_header, paths, chunksize=64):
            facts.append(fact)
            on_read(1)
    return facts


def find_broken(paths: Iterable[Path], on_decoded: Callable[[int], None] = lambda _: None) -> list[BrokenFile]:
    """Decode each file and return those that fail."""
    broken = []
    with ThreadPool(_THREADS) as pool:
        for path, reason in pool.imap(_try_to_decode, paths, chunksize=16):
            if reason:
                broken.append(BrokenFile(path, reason))
            on_decoded(1)
    return broken


def count_by(values: Iterable[str]) -> dict[str, int]:
    """Count each value, the most frequent first."""
    return dict(Counter(values).most_common())


def _read_header(path: Path) -> FileFacts:
    try:
        num_bytes = path.stat().st_size
        with open_picture(path) as image:
            return FileFacts(path, image.format or "", image.mode, image.width, image.height, num_bytes)
    except Exception:  # Pillow raises many exceptions for a damaged header; decoding will report the reason
        return FileFacts(path, "", "", 0, 0, 0)


def _try_to_decode(path: Path) -> tuple[Path, str]:
    try:
        decode_image(path)
    except ImageError as error:
        return path, str(error).removeprefix(f"{path}: ")
    return path, ""

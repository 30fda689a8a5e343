"""Survey the pictures of a data set: headers, pictures that cannot be decoded, and pictures unlike the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np
import numpy.typing as npt

from cifar_ray.config import printable
from cifar_ray.data.bursts import sketch
from cifar_ray.data.decode import decode_image
from cifar_ray.data.decoding.formats import open_picture
from cifar_ray.data.reading.picture_source import Pictures
from cifar_ray.errors import ImageError

_THREADS = 8
_LEAST_PICTURES = 20  # fewer pictures do not show what is usual
_UNLIKE_STD = 6.0  # threshold for the sum of both measures, in standard deviations below their medians
_MAD_TO_STD = 1.4826  # from the median absolute deviation to the standard deviation of a normal distribution
_LEAST_STD = 0.5  # bits; pictures from one source may differ so little that every picture would stand out
_MAX_UNLIKE = 20


@dataclass(frozen=True)
class FileFacts:
    """Facts from the header of one file.

    Attributes:
        name: path of the picture, relative to the folder of the data set.
        where: path of the picture, including the folder.
        format: for example `JPEG`; empty if the header cannot be read.
        mode: colour mode, for example `RGB`.
        width_px: as stored, before EXIF rotation.
        height_px: as stored, before EXIF rotation.
        num_bytes: size of the file in bytes.
    """

    name: str
    where: str
    format: str
    mode: str
    width_px: int
    height_px: int
    num_bytes: int


@dataclass(frozen=True)
class BrokenFile:
    """A picture that cannot be decoded: where it is, and why."""

    where: str
    reason: str


def read_headers(pictures: Pictures, on_read: Callable[[int], None] = lambda _: None) -> list[FileFacts]:
    """Read the header of each picture, in order, without decoding pixels; `on_read` gets the number of pictures since its last call."""
    facts = []
    with ThreadPool(_THREADS) as pool:
        for fact in pool.imap(partial(_read_header, pictures), range(len(pictures)), chunksize=64):
            facts.append(fact)
            on_read(1)
    return facts


def find_broken(pictures: Pictures, on_decoded: Callable[[int], None] = lambda _: None) -> list[BrokenFile]:
    """Decode each picture and return those that fail; `on_decoded` gets the number of pictures since its last call."""
    broken = []
    with ThreadPool(_THREADS) as pool:
        for row, reason in enumerate(pool.imap(partial(_try_to_decode, pictures), range(len(pictures)), chunksize=16)):
            if reason:
                broken.append(BrokenFile(pictures.where(row), reason))
            on_decoded(1)
    return broken


@dataclass(frozen=True)
class UnlikePicture:
    """A picture with much less content than the others.

    Attributes:
        row: number of the picture, from 0.
        reason: what is unusual about the picture.
    """

    row: int
    reason: str


def find_unlike(images: npt.NDArray[np.uint8], files: Sequence[FileFacts]) -> list[UnlikePicture]:
    """Find pictures of nearly one colour that compress unusually well: placeholders of lost pictures, scans of nothing, logos.

    The score needs no network: the entropy of the colours plus the logarithm of the bytes per pixel, each in standard deviations from
    its median.

    Args:
        images: uint8 `[N, S, S, 3]`.
        files: the header of each.

    Returns:
        At most 20, the least usual first.
    """
    if len(images) < _LEAST_PICTURES:
        return []
    codes = (sketch(images)[0] >> 5).astype(np.int64) @ np.array([64, 8, 1])
    entropy_bits = np.array([_entropy_bits(image) for image in codes])
    bytes_per_pixel = np.array([max(1, file.num_bytes) / max(1, file.width_px * file.height_px) for file in files])
    score = _in_std(entropy_bits) + _in_std(np.log2(bytes_per_pixel))
    rows = np.argsort(score)[:_MAX_UNLIKE]
    usual = f"(usual: {np.median(entropy_bits):.1f} and {np.median(bytes_per_pixel):.2g})"
    return [
        UnlikePicture(int(row), f"{entropy_bits[row]:.1f} bits of colour and {bytes_per_pixel[row]:.2g} bytes per pixel {usual}")
        for row in rows
        if score[row] <= -_UNLIKE_STD
    ]


def _entropy_bits(codes: npt.NDArray[np.int64]) -> float:
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(shares * np.log2(shares)).sum())


def _in_std(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from_median = values - np.median(values)
    scaled: npt.NDArray[np.float64] = from_median / max(_LEAST_STD, _MAD_TO_STD * float(np.median(np.abs(from_median))))
    return scaled


def count_by(values: Iterable[str]) -> dict[str, int]:
    """Count each value, the most frequent first."""
    return dict(Counter(values).most_common())


def _read_header(pictures: Pictures, row: int) -> FileFacts:
    name, where = printable(pictures.names[row]), pictures.where(row)
    try:
        with open_picture(pictures.source(row)) as image:
            return FileFacts(name, where, image.format or "", image.mode, image.width, image.height, pictures.num_bytes(row))
    except Exception:  # Pillow raises many exceptions for a damaged header; decoding will report the reason
        return FileFacts(name, where, "", "", 0, 0, 0)


def _try_to_decode(pictures: Pictures, row: int) -> str:
    """Why a picture cannot be decoded; empty if it can."""
    try:
        decode_image(pictures.source(row))
    except ImageError as error:
        return str(error).removeprefix(f"{pictures.where(row)}: ").removeprefix("picture: ")
    return ""

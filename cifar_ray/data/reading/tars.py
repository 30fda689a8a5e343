"""WebDataset shards: tars whose members `KEY.jpg`, `KEY.cls`, `KEY.json`, `KEY.txt` belong together.

A tar is read once from its start to its end for an index, which is cached. Pictures are then read at their place in it. The format:
https://github.com/webdataset/webdataset#the-webdataset-format
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.errors import DataError

TEXTS = ("cls", "json", "txt")  # what may hold the label
_BLOCK_BYTES = 512


class Sample:
    """What a tar has of one key.

    Attributes:
        key: path of the members without their suffix.
        picture: name, first byte and number of bytes of the picture; `None` without one.
        texts: content of the members `cls`, `json` and `txt`.
    """

    __slots__ = ("key", "picture", "texts")

    def __init__(self, key: str) -> None:
        self.key = key
        self.picture: tuple[str, int, int] | None = None
        self.texts: dict[str, str] = {}


def read_samples(file: BinaryIO, where: str) -> list[Sample]:
    """Read the index of a tar.

    Args:
        file: the tar, at its start; parts of it are skipped.
        where: its path, for messages.

    Raises:
        DataError: if it is not a tar, is cut off, or a key has two pictures or two labels.
    """
    samples: dict[str, Sample] = {}
    key = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar):
                folder, slash, name = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = name.partition(".")
                key, suffix = f"{folder}{slash}{stem}", suffix.lower()
                sample = samples.setdefault(key, Sample(key))
                if f".{suffix}" in SUFFIXES:
                    if sample.picture is not None:
                        raise DataError(f"{where}: two pictures have the key {key}; a key needs one picture")
                    sample.picture = (member.name, member.offset_data, member.size)
                elif suffix in TEXTS:
                    content = tar.extractfile(member)
                    sample.texts[suffix] = "" if content is None else content.read().decode()
            _check_end(file, tar.offset, where, samples)
    except UnicodeDecodeError:
        raise DataError(f"{where}, key {key}: the label is not text in UTF-8") from None
    except (tarfile.TarError, EOFError) as error:
        last = f" after {next(reversed(samples))}" if samples else ""
        hint = "; unpack it first: gunzip" if _is_compressed(file) else "; is it cut off? Copy it again"
        raise DataError(f"{where}: damaged tar{last} ({error}){hint}") from None
    return list(samples.values())


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Regular files, without those that macOS adds. The list that `tarfile` keeps takes a kilobyte for each."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # documented: https://docs.python.org/3/library/tarfile.html
        if member.isreg() and not member.name.rpartition("/")[2].startswith("."):
            yield member


def _check_end(file: BinaryIO, end: int, where: str, samples: dict[str, Sample]) -> None:
    """`tarfile` takes a tar that ends within a header for a whole one; a whole one ends with blocks of zeros."""
    file.seek(max(0, end - _BLOCK_BYTES))
    tail = file.read(2 * _BLOCK_BYTES)
    if len(tail) < _BLOCK_BYTES or tail[-_BLOCK_BYTES:].strip(b"\0"):
        last = f" after {next(reversed(samples))}" if samples else ""
        raise DataError(f"{where}: the tar is cut off{last}; copy it again")


def _is_compressed(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(2) == b"\x1f\x8b"


def buffered(file: BinaryIO) -> BinaryIO:
    """Read an object in requests of a megabyte, but do not read what is skipped."""
    return io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]  # pyarrow's files have all methods of a raw one

"""WebDataset shards: tars whose members `KEY.jpg`, `KEY.cls`, `KEY.json`, `KEY.txt` belong together.

A tar is read once from start to end to build an index, which is cached. Each picture is then read directly at its position in the tar.
The format: https://github.com/webdataset/webdataset#the-webdataset-format
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.errors import DataError

TEXTS = ("cls", "json", "txt")  # suffixes of the members that may hold the label
_BLOCK_BYTES = 512


class Sample:
    """The members of a tar that have the same key.

    Attributes:
        key: path of the members without their suffix.
        picture: name of the picture, offset of its first byte in the tar, and its size in bytes; `None` without a picture.
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
        file: the tar, at its start; the pictures are skipped.
        where: path of the tar, for messages.

    Raises:
        DataError: if it is not a tar, is cut off or compressed, if a key has two pictures or two labels of one kind, or if a label is not
            text in UTF-8.
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
                    if suffix in sample.texts:
                        raise DataError(f"{where}: two members are called {key}.{suffix}; a key needs one label")
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
    """Regular files that are not hidden (macOS adds hidden ones); clears `tarfile`'s list, which takes a kilobyte per member."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # documented: https://docs.python.org/3/library/tarfile.html
        if member.isreg() and not member.name.rpartition("/")[2].startswith("."):
            yield member


def _check_end(file: BinaryIO, end: int, where: str, samples: dict[str, Sample]) -> None:
    """Check that a tar ends with blocks of zeros: `tarfile` accepts a tar that is cut off within a header."""
    file.seek(max(0, end - _BLOCK_BYTES))
    tail = file.read(2 * _BLOCK_BYTES)
    if len(tail) < _BLOCK_BYTES or tail[-_BLOCK_BYTES:].strip(b"\0"):
        last = f" after {next(reversed(samples))}" if samples else ""
        raise DataError(f"{where}: the tar is cut off{last}; copy it again")


def _is_compressed(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(2) == b"\x1f\x8b"


def buffered(file: BinaryIO) -> BinaryIO:
    """Buffer an object in requests of one megabyte; bytes that a seek skips are not requested."""
    return io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]  # pyarrow's files have all methods of a raw one

"""Find and read picture files, from paths and URIs."""

from __future__ import annotations

import codecs
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType

from cifar_ray.config import local_path
from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.decoding.picture_files import PictureFilter, pictures_in
from cifar_ray.data.decoding.special_files import open_regular
from cifar_ray.data.listing.unlabelled import pictures_of_file, read_member, shards_of_folder
from cifar_ray.errors import ConfigError, DataError, ImageError, StoreError

STDIN = "-"
_BYTE_ORDER_MARK = "\ufeff"  # Windows programs start a list with this character, and end lines with \r\n
_LINE_END = re.compile("\r\n?|\n")
_UTF16_NULS = 0.25  # fraction of NUL bytes: a third to a half in paths in UTF-16, much less between names of `find -print0`


def list_pictures(sources: Sequence[str], stdin: Iterable[bytes] | Iterable[str]) -> list[str]:
    """Find picture files, without opening them.

    Args:
        sources: files, folders (searched at any depth), tables, tars, Arrow and Parquet files, globs (including `**`), URIs
            (`s3://bucket/folder`), and `-` for paths on stdin, one per line or separated by NUL.
        stdin: read only for `-`: a binary stream in UTF-8 or UTF-16, or lines.

    Returns:
        Absolute paths or URIs without repetition, in the order of `sources`, and sorted within a folder.

    Raises:
        ConfigError: if a source is in the home folder of an unknown user.
        DataError: if a source does not exist, or no picture is found. A missing file in a list on stdin is kept, and
            gives an error when it is read.
    """
    found: dict[str, None] = {}
    for source in sources:
        for line in _listed(b"".join(map(_as_bytes, stdin))) if source == STDIN else [source]:
            try:
                found.update(dict.fromkeys(_find_by_uri(line) if "://" in line else _find(line)))
            except (ConfigError, DataError):
                if source != STDIN:
                    raise
                found[line if "://" in line else _absolute(line)] = None
    if not found:
        raise DataError(f"{', '.join(sources)}: no pictures found. Supported: {', '.join(SUFFIXES)}")
    return list(found)


def read_picture(name: str) -> bytes:
    """Read a picture file.

    Raises:
        ImageError: if the file cannot be read.
    """
    try:
        if (member := read_member(name)) is not None:
            return member
        if "://" not in name:
            with open_regular(Path(name)) as file:
                return file.read()
        file_system, path = FileSystem.from_uri(name)
        with file_system.open_input_stream(path) as stream:
            data: bytes = stream.readall()
            return data
    except (ImageError, DataError, StoreError) as error:
        raise ImageError(f"{name}: {error}") from None
    except (OSError, ValueError, ArrowException) as error:
        raise ImageError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or ' '.join(str(error).split())})") from None


def _listed(data: bytes) -> list[str]:
    """Split a list at NULs, or at line ends if it contains no NUL."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    elif data.count(0) > _UTF16_NULS * len(data):
        is_little_endian = data[1::2].count(0) > data[::2].count(0)
        text = data.decode("utf-16-le" if is_little_endian else "utf-16-be", errors="replace")
    else:
        text = os.fsdecode(data)
    lines = text.split("\0") if "\0" in text else _LINE_END.split(text)
    return [name for line in lines if (name := line.lstrip(_BYTE_ORDER_MARK))]


def _as_bytes(line: bytes | str) -> bytes:
    return line if isinstance(line, bytes) else os.fsencode(line if line.endswith(("\n", "\r")) else f"{line}\n")


def _absolute(path: str) -> str:
    try:
        return str(local_path(path).absolute())
    except ConfigError:  # `~name` of an unknown user
        return str(Path(path).absolute())


def _find(source: str) -> list[str]:
    path = local_path(source).absolute()
    try:
        if path.is_dir():
            picture_filter = PictureFilter()
            found = [str(picture) for picture in pictures_in(path, picture_filter)]
            if not found and (shards := shards_of_folder(path)):
                return [name for shard in shards for name in pictures_of_file(shard) or ()]
            picture_filter.report(path)
            return found
        if path.exists():
            return pictures_of_file(str(path)) or [str(path)]
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(source) else []  # noqa: PTH207  (an absolute pattern)
        found = [match for match in matches if Path(match).is_file()]
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})") from None
    if not found:
        raise DataError(f"{source}: file or folder not found")
    return found


def _find_by_uri(uri: str) -> Iterator[str]:
    try:
        file_system, path = FileSystem.from_uri(uri)
        (entry,) = file_system.get_file_info([path])
        if entry.type == FileType.NotFound:
            raise DataError(f"{uri}: file or folder not found")
        if entry.type != FileType.Directory:
            yield from pictures_of_file(uri) or [uri]
            return
        inside = file_system.get_file_info(FileSelector(path, recursive=True))
    except (OSError, ValueError, ArrowException) as error:
        raise DataError(f"{uri}: {' '.join(str(error).split())}") from None
    base = path.rstrip("/")
    root = uri.partition("?")[0].rstrip("/")
    query = uri.partition("?")[2]
    picture_filter = PictureFilter()
    for name in sorted(entry.path.removeprefix(base) for entry in inside if entry.type == FileType.File):
        *folders, file = name.strip("/").split("/")
        if all(map(picture_filter.enters, folders)) and picture_filter.accepts(file):
            yield root + name + (f"?{query}" if query else "")
    picture_filter.report(uri)

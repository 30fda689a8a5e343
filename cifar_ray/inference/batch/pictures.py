"""Find and read picture files, from paths and URIs."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType

from cifar_ray.config import local_path
from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.decoding.picture_files import PictureFilter, pictures_in
from cifar_ray.data.decoding.special_files import open_regular
from cifar_ray.errors import DataError, ImageError

STDIN = "-"
_BYTE_ORDER_MARK = "\ufeff"  # Windows programs write it at the start of a list, and end lines with \r\n


def list_pictures(sources: Sequence[str], stdin: Iterable[str]) -> list[str]:
    """Find picture files, without opening them.

    Args:
        sources: files, folders (searched at any depth), globs (including `**`), URIs (`s3://bucket/folder`), and `-` for
            paths on stdin, one per line.
        stdin: lines; read only for `-`.

    Returns:
        Absolute paths or URIs, each once: the order of `sources`, sorted within a folder.

    Raises:
        DataError: if a source does not exist, or no picture is found. A missing file in a list on stdin is kept, and
            gives an error when it is read.
    """
    found: dict[str, None] = {}
    for source in sources:
        lines = [line.lstrip(_BYTE_ORDER_MARK).rstrip("\r\n") for line in stdin] if source == STDIN else [source]
        for line in filter(None, lines):
            try:
                found.update(dict.fromkeys(_find_by_uri(line) if "://" in line else _find(line)))
            except DataError:
                if source != STDIN:
                    raise
                found[line if "://" in line else str(local_path(line).absolute())] = None
    if not found:
        raise DataError(f"{', '.join(sources)}: no pictures found. Supported: {', '.join(SUFFIXES)}")
    return list(found)


def read_picture(name: str) -> bytes:
    """Read a picture file.

    Raises:
        ImageError: if the file cannot be read.
    """
    try:
        if "://" not in name:
            with open_regular(Path(name)) as file:
                return file.read()
        file_system, path = FileSystem.from_uri(name)
        with file_system.open_input_stream(path) as stream:
            data: bytes = stream.readall()
            return data
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except (OSError, ArrowException) as error:
        raise ImageError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or ' '.join(str(error).split())})") from None


def _find(source: str) -> Iterator[str]:
    path = local_path(source).absolute()
    if path.is_dir():
        picture_filter = PictureFilter()
        yield from map(str, pictures_in(path, picture_filter))
        picture_filter.report(path)
    elif path.exists():
        yield str(path)
    elif glob.has_magic(source):
        for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207  (an absolute pattern)
            if Path(match).is_file():
                yield match
    else:
        raise DataError(f"{source}: file or folder not found")


def _find_by_uri(uri: str) -> Iterator[str]:
    try:
        file_system, path = FileSystem.from_uri(uri)
        (entry,) = file_system.get_file_info([path])
        if entry.type == FileType.NotFound:
            raise DataError(f"{uri}: file or folder not found")
        if entry.type != FileType.Directory:
            yield uri
            return
        inside = file_system.get_file_info(FileSelector(path, recursive=True))
    except (OSError, ArrowException) as error:
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

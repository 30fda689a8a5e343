"""Find and read the pictures of jobs, only in the storage's folder `inputs` and below addresses that the operator allows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from pyarrow.fs import FileType

from cifar_ray.config.locations import split_address
from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.decoding.special_files import open_regular
from cifar_ray.errors import ConfigError, DataError, ImageError
from cifar_ray.jobs import web_files
from cifar_ray.jobs.safe_paths import check_relative
from cifar_ray.storage import FileTree

INPUTS = "inputs"
LIST_SUFFIX = ".txt"
_WEB = ("http", "https")

_LINE_BYTES = 4096
_BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class _Place:
    """Location of a picture, list or folder.

    Attributes:
        base: URI of an object store's folder, with its query; the storage; or the address of a web server's folder.
        folder: folder in `base`; empty for `base` itself.
        path: path relative to that folder.
        is_web: whether it is on a web server.
    """

    base: str
    folder: str
    path: str
    is_web: bool = False


class JobSources:
    """Finds and reads the pictures of jobs. A name is a path in `<storage>/inputs`, or an address; nothing else can be read.

    Args:
        storage: path or URI.
        allowed: addresses below which pictures may be: `s3://bucket/folder`, `gs://…`, `https://host/folder`. Addresses of object stores
            may have options, as for `FileTree`; names that clients send may not.
    """

    def __init__(self, storage: str, allowed: Sequence[str] = ()) -> None:
        self._storage = storage
        self._allowed = tuple(allowed)
        self._trees: dict[tuple[str, str], FileTree] = {}

    def __reduce__(self) -> tuple[type[JobSources], tuple[str, tuple[str, ...]]]:
        return JobSources, (self._storage, self._allowed)  # file systems stay in their process

    def check(self, source: str) -> None:
        """Check a source as a client sends it.

        Raises:
            ConfigError: if it is not allowed.
            DataError: if it does not exist. Existence on a web server is not checked; the job fails later.
            StoreError: if the object store cannot be reached.
        """
        place = self._locate(source)
        if place.is_web:
            if not source.lower().endswith((LIST_SUFFIX, *SUFFIXES)):
                raise ConfigError(f"{source[:200]}: a web server has no folders; name a picture, or a list ending in {LIST_SUFFIX}")
            return
        tree = self._tree(place)
        if isinstance(local := self._local(place), str):
            raise ConfigError(local)
        entry = tree.file_system.get_file_info([tree.path(place.path)])[0]
        if entry.type == FileType.NotFound:
            raise DataError(f"{source[:200]}: not found in the storage's folder {INPUTS}" if place.folder else f"{source[:200]}: not found")

    def pictures(self, source: str) -> Iterator[str]:
        """Names of all pictures of a source, one by one, so that memory does not grow with their number.

        A source that ends in `.txt` is a list: each line is a picture, relative to the list's folder, or an address. A source with the
        suffix of a picture is one picture. Any other source is a folder, which is searched at any depth.

        Raises:
            ConfigError: if it is not allowed.
            DataError: if it does not exist, or a list is damaged.
            StoreError: if the object store or web server cannot be reached.
        """
        place = self._locate(source)
        if source.lower().endswith(LIST_SUFFIX):
            yield from self._listed(source, place)
        elif source.lower().endswith(SUFFIXES):
            yield source
        elif place.is_web:
            raise ConfigError(f"{source[:200]}: a web server has no folders; name a picture, or a list ending in {LIST_SUFFIX}")
        else:
            above = source[: len(source) - len(place.path)]
            yield from (above + name for name in self._tree(place).walk(place.path) if name.lower().endswith(SUFFIXES))

    def read(self, name: str) -> bytes:
        """Read a picture.

        Raises:
            ImageError: if the picture does not exist or is not allowed.
            StoreError: if the object store or web server cannot be reached.
        """
        try:
            place = self._locate(name, is_listed=True)
        except ConfigError as error:
            raise ImageError(str(error)) from None
        if place.is_web:
            return web_files.read_picture(f"{place.base}/{place.path}")
        local = self._local(place)
        if isinstance(local, str):
            raise ImageError(local)
        if local is None:
            content = self._tree(place).read(place.path)
            if content is None:
                raise ImageError(f"{name[:200]}: not found")
            return content
        try:
            with open_regular(local) as file:
                return file.read()
        except (OSError, ValueError) as error:
            raise ImageError(f"{name[:200]}: cannot be read ({getattr(error, 'strerror', None) or 'no such name'})") from None

    def _locate(self, name: str, is_listed: bool = False) -> _Place:
        """Locate a name. A name from a list or folder may contain any characters, but must stay below its folder."""
        if "://" not in name:
            return _Place(self._storage, INPUTS, _check_below(name) if is_listed else check_relative(name))
        for allowed in self._allowed:
            shown, base, query = split_address(allowed)
            if name.startswith(f"{shown}/"):
                path = name[len(shown) + 1 :]
                if "?" in path or "#" in path:
                    raise ConfigError(f"{name[:200]}: expected an address without ? and #")
                is_web = allowed.startswith(_WEB)
                checked = _check_below(path) if is_listed and not is_web else check_relative(path)
                return _Place(base if is_web else f"{base}{query}", "", checked, is_web)
        raise ConfigError(f"{name[:200]}: not below an address that this server allows (job_sources)")

    def _local(self, place: _Place) -> Path | str | None:
        """The real path of a file or folder on this machine; `None` in an object store; an error message if a link leads outside."""
        if "://" in self._storage or not place.folder:
            return None
        root = os.path.realpath(os.path.join(self._storage, INPUTS))  # noqa: PTH118
        try:
            real = os.path.realpath(os.path.join(root, place.path))  # noqa: PTH118
        except ValueError:
            return f"{place.path[:200]!r}: not a file name"
        if os.path.commonpath([root, real]) != root:
            return f"{place.path[:200]}: a link leads out of the storage's folder {INPUTS}"
        return Path(real)

    def _tree(self, place: _Place) -> FileTree:
        key = (place.base, place.folder)
        if key not in self._trees:
            self._trees[key] = FileTree(*key)
        return self._trees[key]

    def _listed(self, source: str, place: _Place) -> Iterator[str]:
        """Names of the pictures in a list."""
        folder = source[: len(source) - len(source.rpartition("/")[2])]
        lines = web_files.read_lines(f"{place.base}/{place.path}", _LINE_BYTES) if place.is_web else self._lines(source, place)
        for number, raw in enumerate(lines, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError:
                raise DataError(f"{source}, line {number}: not UTF-8") from None
            if line:
                yield line if "://" in line else urljoin(folder, line) if place.is_web else folder + line

    def _lines(self, source: str, place: _Place) -> Iterator[bytes]:
        tree, local = self._tree(place), self._local(place)
        if isinstance(local, str):
            raise DataError(local)
        if not tree.have_files([place.path])[0]:
            raise DataError(f"{source}: not found")
        file, rest, start = tree.open_parts(place.path), b"", 0
        while block := file(start, _BLOCK_BYTES):
            start += len(block)
            *whole, rest = (rest + block).split(b"\n")
            if len(rest) > _LINE_BYTES:
                raise DataError(f"{source}: a line has over {_LINE_BYTES:,} bytes; expected a picture in each line")
            yield from whole
        yield rest


def _check_below(path: str) -> str:
    """Check that a path from a list or folder does not leave its folder; `_local` later checks links."""
    if path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ConfigError(f"{path[:200]!r}: leads out of the folder of the pictures")
    return path

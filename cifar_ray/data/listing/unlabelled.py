"""Pictures of tables and shards without their labels, for prediction; each has a name with which any process can read it."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from cifar_ray.data.listing.columns import find_image
from cifar_ray.data.listing.readers import SUFFIXES, read_table
from cifar_ray.data.listing.shards import SUFFIXES as SHARD_SUFFIXES
from cifar_ray.data.listing.shards import read_shards, saved_in, shards_in
from cifar_ray.data.listing.table_rows import find_pictures
from cifar_ray.data.reading.picture_source import Pictures, parse_location
from cifar_ray.errors import ImageError
from cifar_ray.storage import split_location

_MAX_OPENED = 16


def pictures_of_file(location: str) -> list[str] | None:
    """Names of the pictures of a table or shard; `None` for any other file.

    Args:
        location: path or URI of the file.

    Raises:
        DataError: if the file is damaged, or has no column of pictures.
        StoreError: if the object store cannot be reached.
    """
    parent, name = split_location(location)
    if not name.lower().endswith((*SUFFIXES, *SHARD_SUFFIXES)):
        return None
    root = parse_location(parent)
    table = read_shards(root, [name]) if name.lower().endswith(SHARD_SUFFIXES) else read_table(root, name)
    if table.pictures is not None:
        return _names(table.pictures, location)
    pictures, found = find_pictures(table, find_image(table))
    return _names(pictures.take(found), location)


def shards_of_folder(folder: Path) -> list[str]:
    """Paths of the shards in a folder; empty if it has none."""
    names = [path.name for path in folder.iterdir()]
    shards = saved_in(folder, names) or shards_in(
        str(path.relative_to(folder)) for pattern in ("*", "*/*") for path in folder.glob(pattern)
    )
    return [str(folder / name) for some in shards.values() for name in some]


def read_member(name: str) -> bytes | None:
    """Read a picture of a shard by its name; `None` if it is not in a shard.

    Raises:
        ImageError: if the shard has no such picture.
        DataError, StoreError: if the shard cannot be read.
    """
    base, mark, query = name.partition("?") if "://" in name else (name, "", "")
    for suffix in SHARD_SUFFIXES:
        end = base.lower().find(f"{suffix}/")
        if end >= 0 and ("://" in base or Path(base[: end + len(suffix)]).is_file()):
            pictures, rows = _opened(base[: end + len(suffix)] + mark + query)
            row = rows.get(name)
            if row is None:
                raise ImageError("no such picture in the file")
            content = pictures.source(row)
            return content if isinstance(content, bytes) else content.read_bytes()
    return None


@lru_cache(_MAX_OPENED)
def _opened(shard: str) -> tuple[Pictures, dict[str, int]]:
    parent, name = split_location(shard)
    pictures = read_shards(parse_location(parent), [name]).pictures
    if pictures is None:
        raise ImageError("the file has paths, not pictures")
    return pictures, {one: row for row, one in enumerate(_names(pictures, shard))}


def _names(pictures: Pictures, location: str) -> list[str]:
    query = location.partition("?")[1:] if "://" in location else ("", "")
    return [os.fsdecode(pictures.path(row)) + "".join(query) for row in range(len(pictures))]

"""Find the tables of labels in a folder: one for all pictures, or one for each split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from cifar_ray.data.decoding.formats import SUFFIXES as PICTURE_SUFFIXES
from cifar_ray.data.listing.columns import find_columns
from cifar_ray.data.listing.layouts import SPLITS, is_name_of
from cifar_ray.data.listing.readers import IMAGE, LABEL, SUFFIXES, LabelTable, read_table
from cifar_ray.data.listing.shards import ALL, read_shards
from cifar_ray.data.listing.shards import SUFFIXES as SHARD_SUFFIXES
from cifar_ray.data.reading.picture_source import Pictures
from cifar_ray.errors import DataError

# Usual names of tables of labels, without the suffix; the preferred one first
_NAMES = (
    "metadata",
    "_classes",
    "labels",
    "annotations",
    "train",
    "training",
    "train_labels",
    "_annotations.coco",
    "instances_default",
    "data",
)
_HELD_OUT = {"val": ("val", "valid", "validation", "dev"), "test": ("test", "testing", "holdout")}


def tables_in(root: Path | str, names: Iterable[str], columns: str | None = None) -> dict[str, LabelTable]:
    """Read the tables of a folder, by split; a table that covers all splits is under `ALL`; empty if the folder has none.

    Args:
        root: the folder: a path, or the URI of an object store.
        names: files in it.
        columns: value of the option `--columns`.
    """
    found = {Path(name).stem.casefold(): name for name in _candidates(names)}
    main = _first(root, found, _NAMES, columns)
    if main is None:
        return {}
    held_out = {split: table for split, usual in _HELD_OUT.items() if (table := _first(root, found, usual, columns)) is not None}
    return {"train": main, **held_out} if held_out else {ALL: main}


def only_table(names: Iterable[str]) -> str | None:
    """Name of the only file with the suffix of a table; `None` if there is none, or more than one."""
    found = _candidates(names)
    return found[0] if len(found) == 1 else None


def class_folders(uri: str, names: Iterable[str]) -> LabelTable:
    """Make a table from the class folders of an object store: `<class>/…`, or `train/<class>/…` with other splits.

    Raises:
        DataError: if there are no pictures in folders.
    """
    paths = [name for name in names if "/" in name and name.lower().endswith(PICTURE_SUFFIXES)]
    if not paths:
        raise DataError(f"{uri.partition('?')[0]}: no table, no tars and no pictures in class folders found; is the address right?")
    parts = [path.split("/") for path in paths]
    has_splits = any(is_name_of("train", one[0]) and len(one) > 2 for one in parts)
    rows = [
        (path, one[has_splits], one[0] if has_splits else "train")
        for path, one in zip(paths, parts, strict=True)
        if not has_splits or (len(one) > 2 and any(is_name_of(split, one[0]) for split in SPLITS))
    ]
    table = pa.table({column: [row[number] for row in rows] for number, column in enumerate((IMAGE, LABEL, "split"))})
    return LabelTable(uri, uri.partition("?")[0], table, Pictures(uri, np.array([os.fsencode(row[0]) for row in rows], np.bytes_)))


def _candidates(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(SUFFIXES))


def _first(root: Path | str, found: Mapping[str, str], names: Sequence[str], columns: str | None) -> LabelTable | None:
    """The first file of these names that has columns of pictures and labels; others may hold settings, or a list of test pictures."""
    for name in (found[name] for name in names if name in found):
        with suppress(DataError):
            table = read_shards(root, [name], columns) if name.lower().endswith(SHARD_SUFFIXES) else read_table(root, name)
            find_columns(table, columns)
            return table
    return None

"""The pictures, labels and splits of a table."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.decoding.picture_files import PictureFilter, pictures_in
from cifar_ray.data.listing.columns import Columns, find_columns
from cifar_ray.data.listing.readers import LabelTable
from cifar_ray.errors import DataError

_SAMPLE = 1000  # rows whose files are looked for before the rest is believed
_CHECKED = 20_000  # rows of which each file is looked for
_MISSING_SHARE = 0.01
_NAMED = 3
_MANY_VALUES = 20


@dataclass(frozen=True)
class Rows:
    """Rows of a table whose pictures were found.

    Attributes:
        columns: where they come from.
        files: path of each picture.
        labels: label of each picture.
        splits: split of each picture, as written; empty texts without such a column.
        missing: row numbers, from 1 without the header, and names of pictures that were not found.
    """

    columns: Columns
    files: list[Path]
    labels: list[str]
    splits: list[str]
    missing: list[tuple[int, str]]


def read_rows(table: LabelTable, chosen: str | None = None) -> Rows:
    """Find the columns and the pictures of a table: relative to its folder, else by their names anywhere below it.

    Args:
        table: the table.
        chosen: `--columns` of the user.

    Raises:
        DataError: if the columns are unclear, a label is unusable, a path leads outside, or more than 1 % of
            the pictures are missing. The message has row number and value.
    """
    path, content, columns = table.path, table.rows, find_columns(table, chosen)
    images = _texts(content[columns.image])
    labels = _one_hot(path, content, columns) if columns.is_one_hot else _labels(path, content[columns.labels[0]], columns.labels[0])
    splits = _texts(content[columns.split]) if columns.split else [""] * len(images)
    files = _find(path.parent, images, path)
    missing = [(number, image) for number, (file, image) in enumerate(zip(files, images, strict=True), 1) if file is None]
    if len(missing) > _MISSING_SHARE * len(images):
        named = ", ".join(f"row {number}: {image}" for number, image in missing[:_NAMED])
        raise DataError(f"{path}: {len(missing):,} of {len(images):,} pictures are not in {path.parent}. The first are: {named}")
    kept = [(file, label, split) for file, label, split in zip(files, labels, splits, strict=True) if file is not None]
    return Rows(columns, [row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept], missing)


def _texts(column: pa.ChunkedArray) -> list[str]:
    """A column as texts; nothing is an empty one."""
    values: list[str] = pc.fill_null(column.cast(pa.string()), "").to_pylist()
    return values


def _labels(path: Path, column: pa.ChunkedArray, name: str) -> list[str]:
    if pa.types.is_list(column.type):
        lists = column.to_pylist()
        for number, values in enumerate(lists, 1):
            if values is None or len(set(values)) != 1:
                shown = ", ".join(map(str, values or ())) or "no label"
                raise DataError(f"{path}, row {number}: column {name} has {shown}; exactly one label for each picture is supported")
        return [str(values[0]) for values in lists]
    labels = [unicodedata.normalize("NFC", label.strip()) for label in _texts(column)]
    for number, label in enumerate(labels, 1):
        if not label:
            raise DataError(f"{path}, row {number}: column {name} is empty; write the label, or remove the row")
    counts = Counter(labels)
    if len(counts) > _MANY_VALUES and all(_is_fraction(label) for label in list(counts)[:_SAMPLE]):
        example = next(iter(counts))
        raise DataError(f"{path}: column {name} holds numbers such as {example}: predicting a number is regression, which is not supported")
    if len(counts) == len(labels) > 2:
        raise DataError(
            f"{path}: column {name} has another value in each row ({labels[0]}, {labels[1]}, …); name the label with --columns label=COLUMN"
        )
    return labels


def _is_fraction(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", text, re.IGNORECASE) is not None


def _one_hot(path: Path, table: pa.Table, columns: Columns) -> list[str]:
    marks = np.stack([table[name].cast(pa.float64()).to_numpy() for name in columns.labels], axis=1)
    counts = marks.sum(axis=1)
    if (wrong := np.flatnonzero(counts != 1)).size:
        number = int(wrong[0])
        raise DataError(
            f"{path}, row {number + 1}: {int(counts[number])} of the columns {', '.join(columns.labels[:_NAMED])}, … are 1; "
            "exactly one label for each picture is supported"
        )
    return [columns.labels[place] for place in marks.argmax(axis=1)]


def _find(root: Path, images: list[str], table: Path) -> list[Path | None]:
    """The file of each row; `None` where there is none."""
    inside = os.path.realpath(root)
    for number, image in enumerate(images, 1):
        if ".." in image or image.startswith("/"):
            place = os.path.realpath(root / image)
            if os.path.commonpath([inside, place]) != inside:
                raise DataError(f"{table}, row {number}: {image} is outside {root}; move the table to a folder above its pictures")
    paths = [root / image for image in images]
    step = max(1, len(images) // _SAMPLE)
    if all(path.is_file() for path in paths[::step]):
        # of many rows, the rest is found missing when it is read
        return [path if len(paths) > _CHECKED or path.is_file() else None for path in paths]
    by_name = _index(root)
    return [path if image and path.is_file() else by_name.get(_plain(image)) for path, image in zip(paths, images, strict=True)]


def _index(root: Path) -> dict[str, Path | None]:
    """Pictures below a folder by path without the suffix, and by name if that is unique."""
    by_name: dict[str, Path | None] = {}
    for file in pictures_in(root, PictureFilter()):
        name = _plain(file.name)
        by_name[name] = None if name in by_name else file
        by_name[_plain(file.relative_to(root).as_posix())] = file
    return by_name


def _plain(image: str) -> str:
    """A path as tables and folders may both write it: without `./`, backslashes and the suffix of a picture."""
    text = image.strip().replace("\\", "/").removeprefix("./")
    suffix = next((suffix for suffix in SUFFIXES if text.lower().endswith(suffix)), "")
    return text[: len(text) - len(suffix)]

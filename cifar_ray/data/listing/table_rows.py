"""The pictures, labels and splits of a table."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.decoding.picture_files import PictureFilter, pictures_in
from cifar_ray.data.listing.categories import Categories
from cifar_ray.data.listing.columns import Columns, find_columns
from cifar_ray.data.listing.readers import LabelTable
from cifar_ray.data.reading.picture_source import Pictures
from cifar_ray.errors import DataError

_SAMPLE = 1000  # rows whose files are looked for before the rest is believed
_CHECKED = 20_000  # rows of which each file is looked for
_MISSING_SHARE = 0.01
_NAMED = 3
_MANY_VALUES = 20
_ODD_PATH = r"^/|\.\.|^\.?/|/\.?/"  # may lead outside, or has several spellings


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table whose pictures were found.

    Attributes:
        columns: where they come from.
        pictures: N pictures.
        labels: label of each.
        splits: split of each, as written; empty texts without such a column.
        missing: row numbers, from 1 without the header, and names of pictures that were not found.
    """

    columns: Columns
    pictures: Pictures
    labels: Categories
    splits: Categories
    missing: list[tuple[int, str]]

    def take(self, rows: npt.NDArray[np.bool_]) -> Rows:
        """The rows where a mask, bool `[N]`, is true."""
        return replace(self, pictures=self.pictures.take(rows), labels=self.labels.take(rows), splits=self.splits.take(rows))


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
    images = pc.fill_null(content[columns.image].cast(pa.string()), "").combine_chunks()
    labels = _one_hot(path, content, columns) if columns.is_one_hot else _labels(path, content[columns.labels[0]], columns.labels[0])
    splits = Categories.of(content[columns.split]) if columns.split else Categories(("",), np.zeros(len(images), np.int64))
    names, found = _find(path.parent, images, path)
    missing = [(int(row) + 1, images[int(row)].as_py()) for row in np.flatnonzero(~found)]
    if len(missing) > _MISSING_SHARE * len(images):
        named = ", ".join(f"row {number}: {image}" for number, image in missing[:_NAMED])
        raise DataError(f"{path}: {len(missing):,} of {len(images):,} pictures are not in {path.parent}. The first are: {named}")
    return replace(Rows(columns, Pictures(path.parent, names), labels, splits, missing).take(found), missing=missing)


def _labels(path: Path, column: pa.ChunkedArray, name: str) -> Categories:
    if pa.types.is_list(column.type):
        lists = column.to_pylist()
        for number, values in enumerate(lists, 1):
            if values is None or len(set(values)) != 1:
                shown = ", ".join(map(str, values or ())) or "no label"
                raise DataError(f"{path}, row {number}: column {name} has {shown}; exactly one label for each picture is supported")
        column = pa.chunked_array([pa.array([str(values[0]) for values in lists])])
    labels = Categories.of(column, lambda label: unicodedata.normalize("NFC", label.strip()))
    if (row := labels.first_row("")) is not None:
        raise DataError(f"{path}, row {row + 1}: column {name} is empty; write the label, or remove the row")
    if len(labels.values) > _MANY_VALUES and all(_is_fraction(label) for label in labels.values[:_SAMPLE]):
        raise DataError(
            f"{path}: column {name} holds numbers such as {labels.values[0]}: predicting a number is regression, which is not supported"
        )
    if len(labels.values) == len(labels) > 2:
        one, other = labels.values[:2]
        raise DataError(
            f"{path}: column {name} has another value in each row ({one}, {other}, …); name the label with --columns label=COLUMN"
        )
    return labels


def _is_fraction(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", text, re.IGNORECASE) is not None


def _one_hot(path: Path, table: pa.Table, columns: Columns) -> Categories:
    marks = np.stack([table[name].cast(pa.float64()).to_numpy() for name in columns.labels], axis=1)
    counts = marks.sum(axis=1)
    if (wrong := np.flatnonzero(counts != 1)).size:
        number = int(wrong[0])
        raise DataError(
            f"{path}, row {number + 1}: {int(counts[number])} of the columns {', '.join(columns.labels[:_NAMED])}, … are 1; "
            "exactly one label for each picture is supported"
        )
    return Categories(columns.labels, marks.argmax(axis=1))


def _find(root: Path, images: pa.StringArray, table: Path) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.bool_]]:
    """Path of the picture of each row, relative to the folder, bytes `[N]`; and whether there is one, bool `[N]`.

    Of many rows, some are looked for; the rest is found missing when it is read.
    """
    names = np.array(images.cast(pa.binary()).to_pylist(), np.bytes_)
    odd = np.flatnonzero(pc.match_substring_regex(images, _ODD_PATH).to_numpy(zero_copy_only=False))
    plain = {int(row): _inside(root, images[int(row)].as_py(), f"{table}, row {row + 1}") for row in odd}
    if plain:
        names = names.astype(f"S{max(names.itemsize, *map(len, plain.values()))}")
        names[list(plain)] = list(plain.values())
    files = Pictures(root, names)
    if all(files.is_file(row) for row in range(0, len(files), max(1, len(files) // _SAMPLE))):
        looked_for = range(len(files)) if len(files) <= _CHECKED else ()
        found = np.ones(len(files), np.bool_)
        found[looked_for] = [files.is_file(row) for row in looked_for]
        return names, found
    by_name = _index(root)
    paths = [
        name if files.is_file(row) else by_name.get(_plain(image))
        for row, (name, image) in enumerate(zip(names.tolist(), images.to_pylist(), strict=True))
    ]
    return np.array([path or b"" for path in paths], np.bytes_), np.array([path is not None for path in paths])


def _inside(root: Path, image: str, where: str) -> bytes:
    """A path relative to the folder.

    Raises:
        DataError: if it leads outside.
    """
    top, place = os.path.realpath(root), os.path.realpath(root / image)
    if os.path.commonpath([top, place]) != top:
        raise DataError(f"{where}: {image} is outside {root}; move the table to a folder above its pictures")
    return os.fsencode(os.path.relpath(place, top) if image.startswith("/") else os.path.normpath(image))


def _index(root: Path) -> dict[str, bytes | None]:
    """Pictures below a folder by path without the suffix, and by name if that is unique."""
    by_name: dict[str, bytes | None] = {}
    for file in pictures_in(root, PictureFilter()):
        name, path = _plain(file.name), file.relative_to(root)
        by_name[name] = None if name in by_name else os.fsencode(path)
        by_name[_plain(path.as_posix())] = os.fsencode(path)
    return by_name


def _plain(image: str) -> str:
    """A path as tables and folders may both write it: without `./`, backslashes and the suffix of a picture."""
    text = image.strip().replace("\\", "/").removeprefix("./")
    suffix = next((suffix for suffix in SUFFIXES if text.lower().endswith(suffix)), "")
    return text[: len(text) - len(suffix)]

"""The pictures, labels and splits of a table."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cifar_ray.config import TaskName
from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.decoding.picture_files import PictureFilter, pictures_in
from cifar_ray.data.listing.categories import Categories
from cifar_ray.data.listing.columns import Columns, find_columns, parse_columns
from cifar_ray.data.listing.descriptions import read_descriptions
from cifar_ray.data.listing.label_columns import LabelSets, clean_label, read_labels
from cifar_ray.data.listing.readers import LabelTable
from cifar_ray.data.reading.picture_source import Pictures, open_tree
from cifar_ray.errors import DataError

_SAMPLE = 500  # approximate number of files that are checked first; if all exist, paths are relative to the folder of the table
_CHECKED = 20_000  # maximum number of rows of a local table whose files are all checked
_MISSING_SHARE = 0.01
_NAMED = 3
_MAX_WEIGHT = 1e6
NO_LABEL = "-1"  # a convention of Hugging Face's `datasets` for test pictures whose labels are not published
_logger = logging.getLogger(__name__)
_ODD_PATH = r"^/|\.\.|^\.?/|/\.?/"  # `..` or a leading `/` may lead outside the folder; `./` and `//` give one path several spellings


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a table whose pictures were found.

    Attributes:
        columns: names of the columns.
        pictures: N pictures.
        labels: label or labels of each row.
        splits: split of each row, as the table writes it; empty texts without such a column.
        weights: float32 `[N]`, weight of each picture in the loss; `None` without such a column.
        names: name of the class by label; empty if the table has no class names beside the labels.
        descriptions: description of the class by label, without labels that have none; `None` if the column turned out to hold
            something else.
        missing: row numbers (from 1, without the header) and names of the pictures that were not found.
    """

    columns: Columns
    pictures: Pictures
    labels: Categories | LabelSets
    splits: Categories
    weights: npt.NDArray[np.float32] | None
    names: Mapping[str, str]
    descriptions: Mapping[str, str] | None
    missing: list[tuple[int, str]]

    def take(self, rows: npt.NDArray[np.bool_]) -> Rows:
        """The rows where a mask, bool `[N]`, is true."""
        weights = None if self.weights is None else self.weights[rows]
        pictures, labels, splits = self.pictures.take(rows), self.labels.take(rows), self.splits.take(rows)
        return replace(self, pictures=pictures, labels=labels, splits=splits, weights=weights)


def read_rows(table: LabelTable, chosen: str | None = None, task: TaskName | None = None) -> Rows:
    """Find the columns of a table and its pictures: by paths relative to its folder, else by names anywhere below it.

    Args:
        table: the table.
        chosen: value of the option `--columns`.
        task: see `read_labels`.

    Raises:
        DataError: if the columns are unclear, a label or weight is unusable, a path leads outside, or more than 1 % of
            the pictures are missing. The message has row number and value.
        StoreError: if the object store cannot be reached.
    """
    content, columns = table.rows, find_columns(table, chosen)
    labels = read_labels(table, columns, task)
    splits = Categories.of(content[columns.split]) if columns.split else Categories(("",), np.zeros(len(content), np.int64))
    weights = read_weights(table, columns.weight) if columns.weight else None
    pictures, found = (table.pictures, np.ones(len(content), np.bool_)) if table.pictures else find_pictures(table, columns.image)
    numbers = np.flatnonzero(~found)
    missing = [(int(row) + 1, str(content[columns.image][int(row)])) for row in numbers]
    if len(missing) > _MISSING_SHARE * len(found):
        named = ", ".join(f"row {number}: {image}" for number, image in missing[:_NAMED])
        count = f"{len(missing):,} of {len(found):,} pictures"
        raise DataError(f"{table.path}: {count} are not in {table.root}; add them, or remove their rows. The first: {named}")
    names, descriptions = _names(table, columns, labels), _descriptions(table, columns, labels, chosen)
    return Rows(columns, pictures, labels, splits, weights, names, descriptions, missing).take(found)


def _names(table: LabelTable, columns: Columns, labels: Categories | LabelSets) -> Mapping[str, str]:
    """Name of the class by label, from the column of names or from the table's schema; empty without names."""
    if columns.name is None:
        known = table.class_names.get(columns.labels[0])
        return {} if known is None else _class_names(table, columns.labels[0], known, labels)
    if isinstance(labels, LabelSets):
        raise DataError(f"{table.path}: column {columns.name} has one name, but pictures have several labels; write names as labels")
    names = Categories.of(table.rows[columns.name], clean_label)
    pairs, first = np.unique(labels.codes * len(names.values) + names.codes, return_index=True)
    found: dict[str, str] = {}
    for pair, row in zip(pairs.tolist(), first.tolist(), strict=True):
        label, name = labels.values[pair // len(names.values)], names.values[pair % len(names.values)]
        if found.setdefault(label, name) != name:
            raise DataError(f"{table.at(row)}: label {label} is called {name!r} here and {found[label]!r} elsewhere; use one name")
    return found


def _descriptions(table: LabelTable, columns: Columns, labels: Categories | LabelSets, chosen: str | None) -> Mapping[str, str] | None:
    """Description of the class by label; `None` if a column that the user did not name holds other things, such as captions."""
    try:
        return read_descriptions(table, columns.description, labels) if columns.description else {}
    except DataError as error:
        if "description" in parse_columns(chosen):
            raise
        _logger.info("column %s is not used, because it does not describe the classes: %s", columns.description, error)
        return None


def _class_names(table: LabelTable, column: str, known: tuple[str, ...], labels: Categories | LabelSets) -> Mapping[str, str]:
    names = {str(number): clean_label(name) for number, name in enumerate(known)}
    unknown = labels.present() - set(names)
    if unknown and unknown != {NO_LABEL}:
        label = min(unknown)
        raise DataError(f"{table.at(labels.first_row(label) or 0)}: column {column} has {label}; its classes are 0–{len(known) - 1}")
    return names


def read_weights(table: LabelTable, name: str) -> npt.NDArray[np.float32]:
    """The weights of a table, float32 `[N]`.

    Raises:
        DataError: if a weight is not a number from 0 to a million, or if all are 0.
    """
    column = table.rows[name]
    try:
        weights = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        weights = np.array([_number(value) for value in column.to_pylist()])
    wrong = np.flatnonzero(~((weights >= 0) & (weights <= _MAX_WEIGHT)))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"{table.at(row)}: column {name} has {column[row]}; a weight is a number from 0 to {_MAX_WEIGHT:g}")
    if not weights.any():
        raise DataError(f"{table.path}: column {name}: all weights are 0; write 1 for a picture that counts once")
    found: npt.NDArray[np.float32] = weights.astype(np.float32)
    return found


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return np.nan


def find_pictures(table: LabelTable, image: str) -> tuple[Pictures, npt.NDArray[np.bool_]]:
    """Find the picture of each row: by its path relative to the folder, else by its name anywhere below it.

    Some files are checked first. If all of them exist, the other files are not checked in an object store, or with more than 20,000 rows;
    a missing file then fails when it is read.

    Args:
        table: the table.
        image: name of the column of paths.

    Returns:
        N pictures; and whether each was found, bool `[N]`, true for files that were not checked.

    Raises:
        DataError: if a path leads outside.
        StoreError: if the object store cannot be reached.
    """
    images = pc.fill_null(table.rows[image].cast(pa.string()), "").combine_chunks()
    names = np.array(images.cast(pa.binary()).to_pylist(), np.bytes_)
    odd = np.flatnonzero(pc.match_substring_regex(images, _ODD_PATH).to_numpy(zero_copy_only=False))
    plain = {int(row): _inside(table, int(row), images[int(row)].as_py()) for row in odd}
    if plain:
        names = names.astype(f"S{max(names.itemsize, *map(len, plain.values()))}")
        names[list(plain)] = list(plain.values())
    pictures = Pictures(table.root, names)
    if all(pictures.are_files(range(0, len(names), max(1, len(names) // _SAMPLE)))):
        looked_for = range(len(names)) if len(names) <= _CHECKED and not pictures.is_remote else range(0)
        found = np.ones(len(names), np.bool_)
        found[list(looked_for)] = pictures.are_files(looked_for)
        return pictures, found
    by_name = _index(table.root)
    present = pictures.are_files(range(len(names)))
    paths = [
        name if is_file and image else by_name.get(_plain(image))
        for name, image, is_file in zip(names.tolist(), images.to_pylist(), present, strict=True)
    ]
    return replace(pictures, names=np.array([path or b"" for path in paths], np.bytes_)), np.array([path is not None for path in paths])


def _inside(table: LabelTable, row: int, image: str) -> bytes:
    """Convert a path of a table to one relative to the folder.

    Raises:
        DataError: if the path leads outside the folder.
    """
    path = os.path.normpath(image)
    if isinstance(table.root, str):
        leads_out = path.startswith(("..", "/"))
    else:
        top, place = os.path.realpath(table.root), os.path.realpath(table.root / image)
        leads_out = os.path.commonpath([top, place]) != top
        path = os.path.relpath(place, top) if image.startswith("/") else path
    if leads_out:
        raise DataError(f"{table.at(row)}: {image} is outside {table.root}; move the table to a folder above its pictures")
    return os.fsencode(path)


def _index(root: Path | str) -> dict[str, bytes | None]:
    """Pictures below a folder, by path without the suffix, and by name without the suffix; `None` if the name is not unique."""
    if isinstance(root, str):
        files = [name for name in open_tree(root).files() if name.lower().endswith(SUFFIXES)]
    else:
        files = [str(file.relative_to(root)) for file in pictures_in(root, PictureFilter())]
    by_name: dict[str, bytes | None] = {}
    for file in files:
        name, path = _plain(file.rpartition("/")[2]), os.fsencode(file)
        by_name[name] = None if name in by_name else path
        by_name[_plain(file)] = path
    return by_name


def _plain(image: str) -> str:
    """Normalize a path to compare tables with folders: without `./`, with `/` for backslashes, and without the suffix of a picture."""
    text = image.strip().replace("\\", "/").removeprefix("./")
    suffix = next((suffix for suffix in SUFFIXES if text.lower().endswith(suffix)), "")
    return text[: len(text) - len(suffix)]

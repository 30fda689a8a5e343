"""Find the pictures of a data set and their classes: in tables of labels, or else in class folders."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path

from cifar_ray.config import TaskChoice
from cifar_ray.data.decoding.picture_files import counted
from cifar_ray.data.listing.label_columns import LabelSets
from cifar_ray.data.listing.layouts import MAX_CLASSES, SPLITS, Listing, Part, is_name_of, is_unprintable, list_folder, subfolders
from cifar_ray.data.listing.readers import SUFFIXES, LabelTable, read_table
from cifar_ray.data.listing.table_files import ALL, only_table, tables_in
from cifar_ray.data.listing.table_rows import Rows, read_rows
from cifar_ray.errors import DataError

_NAMED = 3
_logger = logging.getLogger(__name__)


def list_pictures(place: Path, columns: str | None = None, task: TaskChoice = "auto") -> Listing:
    """Find the pictures and classes of a data set: in a table, in a folder with tables, or in a folder of class folders.

    Args:
        place: the table or the folder.
        columns: names of the columns, as in `--columns`; `None` finds them.
        task: whether a picture has one label or several; `auto` finds out. Class folders give one.

    Raises:
        DataError: as `list_folder` and `read_rows`, or if a table has unusable classes or splits.
    """
    if place.is_file() and place.suffix.lower() in SUFFIXES:
        return _list_tables(place.parent, {ALL: read_table(place)}, columns, task, place.stem)
    tables = _tables_of(place, columns) if place.is_dir() else {}
    if tables:
        try:
            return _list_tables(place, tables, columns, task)
        except DataError as error:
            if columns or task == "multi-label":
                raise
            with suppress(DataError):
                listing = list_folder(place)
                _logger.info("%s: class folders say the labels, because the table does not: %s", place, error)
                return listing
            raise
    try:
        listing = list_folder(place)
    except DataError:
        # without class folders a table is meant, even if its name or columns do not say so
        table = only_table(place) if place.is_dir() else None
        if table is None:
            raise
        return _list_tables(place, {ALL: read_table(table)}, columns, task)
    if task == "multi-label":
        raise DataError(f"{place}: class folders give each picture one label; for several of them, --task multi-label needs a table")
    return listing


def _tables_of(root: Path, columns: str | None) -> dict[str, LabelTable]:
    """Tables of a folder by split, as from `tables_in`, or one in the folder of each split."""
    if found := tables_in(root, columns):
        return found
    folders = {split: root / name for split in SPLITS for name in subfolders(root) if is_name_of(split, name)}
    parts = {split: table for split, folder in folders.items() if (table := tables_in(folder, columns).get(ALL)) is not None}
    return parts if "train" in parts else {}


def _list_tables(root: Path, tables: dict[str, LabelTable], columns: str | None, task: TaskChoice, name: str | None = None) -> Listing:
    read = [read_rows(table, columns, None if task == "auto" else task) for table in tables.values()]
    are_sets = [isinstance(rows.labels, LabelSets) for rows in read]
    if any(are_sets) and not all(are_sets):  # the table of one split happens to have one label in each row
        read = [read_rows(table, columns, "multi-label") for table in tables.values()]
    found: list[tuple[str, Rows]] = []
    for (table_split, table), rows in zip(tables.items(), read, strict=True):
        path = table.path
        if table_split == ALL:
            split_of = {text: _split_named(text, path) for text in rows.splits.present()}
            numbers = rows.splits.map({text: list(SPLITS).index(split) for text, split in split_of.items()})
            found += [(split, rows.take(numbers == number)) for number, split in enumerate(SPLITS) if split in split_of.values()]
        else:
            found.append((table_split, rows))
        labels = rows.labels.describe() if isinstance(rows.labels, LabelSets) else f"labels from column {rows.columns.labels[0]}"
        _logger.info("%s: %s, %s", path, counted(len(rows.labels), "row"), labels)
        if rows.missing:
            first = ", ".join(f"row {number}: {image}" for number, image in rows.missing[:_NAMED])
            _logger.warning("%s: left out %s whose picture is missing: %s", path, counted(len(rows.missing), "row"), first)
    names = _class_names(next(iter(tables.values())).path, {split: rows.labels.present() for split, rows in found})
    numbers_of = {class_name: label for label, class_name in enumerate(names)}
    parts = {split: Part(rows.pictures.relative_to(root), rows.labels.map(numbers_of)) for split, rows in found}
    return Listing(root, names, parts, root / name if name else None)


def _class_names(table: Path, classes: dict[str, set[str]]) -> tuple[str, ...]:
    """Names of the classes in natural order: 2 before 10."""
    if "train" not in classes:
        raise DataError(f"{table}: no row belongs to the split train, only to {' and '.join(classes)}")
    train = classes["train"]
    if len(train) < 2:
        raise DataError(f"{table}: all rows have the label {next(iter(train))!r}; at least two classes are needed")
    if len(train) > MAX_CLASSES:
        raise DataError(f"{table}: {len(train):,} classes; the maximum is {MAX_CLASSES:,}. Is it the right column? --columns label=COLUMN")
    if odd := next((name for name in train if is_unprintable(name)), None):
        raise DataError(f"{table}: the label {odd!a} has unprintable characters; change it")
    for split, labels in classes.items():
        if unknown := sorted(labels - train):
            raise DataError(f"{table}: class {unknown[0]!r} is only in {split}; add training images for it, or remove it from {split}")
    return tuple(sorted(train, key=_naturally))


def _split_named(name: str, path: Path) -> str:
    split = next((split for split in SPLITS if is_name_of(split, name.strip())), None) if name.strip() else "train"
    if split is None:
        raise DataError(f"{path}: unknown split {name!r}; expected train, val or test. Is it another column? --columns split=COLUMN")
    return split


def _naturally(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]

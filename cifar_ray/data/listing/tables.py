"""Find the pictures of a data set and their classes, in tables of labels, shards or class folders."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cifar_ray.config import TaskChoice
from cifar_ray.data.decoding.picture_files import counted
from cifar_ray.data.listing.columns import parse_columns
from cifar_ray.data.listing.descriptions import join_descriptions
from cifar_ray.data.listing.label_columns import LabelSets
from cifar_ray.data.listing.layouts import MAX_CLASSES, SPLITS, Listing, Part, is_name_of, is_unprintable, list_folder, subfolders
from cifar_ray.data.listing.readers import SUFFIXES, LabelTable, read_table
from cifar_ray.data.listing.shards import ALL, read_shards, saved_in, shards_in
from cifar_ray.data.listing.shards import SUFFIXES as SHARD_SUFFIXES
from cifar_ray.data.listing.table_files import class_folders, only_table, tables_in
from cifar_ray.data.listing.table_rows import NO_LABEL, Rows, read_rows
from cifar_ray.data.reading.picture_source import open_tree
from cifar_ray.errors import DataError
from cifar_ray.storage import split_location

_NAMED = 3
_logger = logging.getLogger(__name__)


def list_pictures(place: Path | str, columns: str | None = None, task: TaskChoice = "auto") -> Listing:
    """Find the pictures and classes of a data set: in class folders, a table, WebDataset tars, Arrow or Parquet files.

    Args:
        place: a folder or file; a path, or the URI of an object store.
        columns: value of the option `--columns`; `None` finds the columns.
        task: whether a picture has one label or several; `auto` finds out. Class folders give one label.

    Raises:
        DataError: as `list_folder`, `read_rows` and `read_shards`, or if a table has unusable classes or splits.
        StoreError: if the object store cannot be reached.
    """
    if isinstance(place, str):
        return _list_objects(place, columns, task)
    if place.is_file() and place.suffix.lower() in (*SUFFIXES, *SHARD_SUFFIXES):
        return _list_tables(place.parent, {ALL: _read(place.parent, place.name, columns)}, columns, task, place.stem)
    names = [path.name for path in place.iterdir()] if place.is_dir() else []
    if saved := saved_in(place, names):
        return _list_shards(place, saved, columns, task)
    tables = _tables_of(place, names, columns) if names else {}
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
        # Without class folders, the user must mean a table or shards, whatever their names.
        table = only_table(names)
        shards = shards_in(str(path.relative_to(place)) for pattern in ("*", "*/*") for path in place.glob(pattern))
        if table is None and not shards:
            raise
        if shards:
            return _list_shards(place, shards, columns, task)
        return _list_tables(place, {ALL: _read(place, str(table), columns)}, columns, task)
    if task == "multi-label":
        raise DataError(f"{place}: class folders give each picture one label; for several of them, --task multi-label needs a table")
    return listing


def _list_objects(uri: str, columns: str | None, task: TaskChoice) -> Listing:
    """List a data set of an object store; lists the objects once, or not at all if the URI names a file."""
    parent, last = split_location(uri)
    if Path(last).suffix.lower() in (*SUFFIXES, *SHARD_SUFFIXES):
        return _list_tables(parent, {ALL: _read(parent, last, columns)}, columns, task, Path(last).stem)
    names = list(open_tree(uri).files())
    top = [name for name in names if "/" not in name]
    if saved := saved_in(uri, top):
        return _list_shards(uri, saved, columns, task)
    if tables := tables_in(uri, top, columns):
        return _list_tables(uri, tables, columns, task)
    if shards := shards_in(names):
        return _list_shards(uri, shards, columns, task)
    if (table := only_table(top)) is not None:
        return _list_tables(uri, {ALL: _read(uri, table, columns)}, columns, task)
    if task == "multi-label":
        raise DataError(f"{uri}: class folders give each picture one label; for several of them, --task multi-label needs a table")
    return _list_tables(uri, {ALL: class_folders(uri, names)}, columns, task)


def _read(root: Path | str, name: str, columns: str | None) -> LabelTable:
    return read_shards(root, [name], columns) if name.lower().endswith(SHARD_SUFFIXES) else read_table(root, name)


def _list_shards(root: Path | str, shards: Mapping[str, Sequence[str]], columns: str | None, task: TaskChoice) -> Listing:
    return _list_tables(root, {split: read_shards(root, names, columns) for split, names in shards.items()}, columns, task)


def _tables_of(root: Path, names: Sequence[str], columns: str | None) -> dict[str, LabelTable]:
    """Tables of a folder by split, from `tables_in`; if the folder has none, the tables in the folders of its splits."""
    if found := tables_in(root, names, columns):
        return found
    folders = {split: root / name for split in SPLITS for name in subfolders(root) if is_name_of(split, name)}
    inside = {split: tables_in(folder, [path.name for path in folder.iterdir()], columns) for split, folder in folders.items()}
    parts = {split: tables[ALL] for split, tables in inside.items() if ALL in tables}
    return parts if "train" in parts else {}


def _list_tables(
    root: Path | str, tables: dict[str, LabelTable], columns: str | None, task: TaskChoice, name: str | None = None
) -> Listing:
    read = [read_rows(table, columns, None if task == "auto" else task) for table in tables.values()]
    are_sets = [isinstance(rows.labels, LabelSets) for rows in read]
    if any(are_sets) and not all(are_sets):  # the table of one split happens to have one label in each row
        read = [read_rows(table, columns, "multi-label") for table in tables.values()]
    found: list[tuple[str, Rows]] = []
    for (table_split, table), rows in zip(tables.items(), read, strict=True):
        path = table.path
        if rows.names and rows.labels.present() == {NO_LABEL} and table_split != "train":
            _logger.warning("%s: left out the split %s, because its pictures have no labels", path, table_split)
            continue
        if table_split == ALL:
            split_of = {text: _split_named(text, path) for text in rows.splits.present()}
            numbers = rows.splits.map({text: list(SPLITS).index(split) for text, split in split_of.items()})
            found += [(split, rows.take(numbers == number)) for number, split in enumerate(SPLITS) if split in split_of.values()]
        else:
            found.append((table_split, rows))
        about = rows.labels.describe() if isinstance(rows.labels, LabelSets) else f"labels from column {rows.columns.labels[0]}"
        _logger.info("%s: %s, %s", path, counted(len(rows.labels), "row"), about)
        if rows.missing:
            first = ", ".join(f"row {number}: {image}" for number, image in rows.missing[:_NAMED])
            _logger.warning("%s: left out %s whose picture is missing: %s", path, counted(len(rows.missing), "row"), first)
    path = next(iter(tables.values())).path
    labels = _class_labels(path, {split: rows.labels.present() for split, rows in found})
    numbers_of = {label: number for number, label in enumerate(labels)}
    parts = {split: Part(rows.pictures.relative_to(root), rows.labels.map(numbers_of), rows.weights) for split, rows in found}
    if any(rows.weights is not None for _, rows in found):
        _logger.info("%s: weights of pictures from column %s", path, found[0][1].columns.weight)
    given = None if name is None else f"{root.partition('?')[0]}/{name}" if isinstance(root, str) else root / name
    names = _display(path, labels, [rows.names for _, rows in found])
    described = _describe(path, [rows for _, rows in found], columns)
    descriptions = {name: described[label] for label, name in zip(labels, names, strict=True) if label in described}
    return Listing(root, names, parts, given, is_table=True, class_descriptions=descriptions)


def _display(path: str, labels: Sequence[str], names: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Names of the classes for the user: from the column of names if there is one, else the labels."""
    found: dict[str, str] = {}
    for label, name in (pair for one in names for pair in one.items()):
        if found.setdefault(label, name) != name:
            raise DataError(f"{path}: label {label} is called {name!r} in one split and {found[label]!r} in another; use one name")
    shown = tuple(found.get(label, label) for label in labels)
    for number, name in enumerate(shown):
        if not name or is_unprintable(name) or name in shown[:number]:
            raise DataError(f"{path}: label {labels[number]} is called {name!a}; give each class a printable name of its own")
    return shown


def _describe(path: str, parts: Sequence[Rows], columns: str | None) -> dict[str, str]:
    """Descriptions of the classes by label; empty if a column that the user did not name holds other things in some table."""
    column, found = parts[0].columns.description, [rows.descriptions for rows in parts if rows.descriptions is not None]
    if len(found) < len(parts):
        return {}
    try:
        descriptions = join_descriptions(path, found)
    except DataError as error:
        if "description" in parse_columns(columns):
            raise
        _logger.info("column %s is not used, because it does not describe the classes: %s", column, error)
        return {}
    if descriptions:
        _logger.info("%s: descriptions of classes from column %s", path, column)
    return descriptions


def _class_labels(table: str, classes: dict[str, set[str]]) -> tuple[str, ...]:
    """Labels of the classes in natural order: 2 before 10."""
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
    return tuple(sorted(train, key=naturally))


def _split_named(name: str, path: str) -> str:
    split = next((split for split in SPLITS if is_name_of(split, name.strip())), None) if name.strip() else "train"
    if split is None:
        raise DataError(f"{path}: unknown split {name!r}; expected train, val or test. Is it another column? --columns split=COLUMN")
    return split


def naturally(name: str) -> list[tuple[int, str]]:
    """Sort key: numbers in names by value, so 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]

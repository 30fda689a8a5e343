"""Read data sets in shards, files that hold the pictures themselves: WebDataset tars, Arrow and Parquet files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cifar_ray.data.decoding.picture_files import counted
from cifar_ray.data.listing.columns import choose_image
from cifar_ray.data.listing.layouts import SPLITS
from cifar_ray.data.listing.readers import IMAGE, LabelTable, read_object, read_table
from cifar_ray.data.reading import cells, tars
from cifar_ray.data.reading.local_cache import SOURCES, load_or_write
from cifar_ray.data.reading.picture_source import Pictures, Spans, open_file, reading, where
from cifar_ray.errors import DataError

ALL = "all"  # key in place of a split, for a table that covers all splits
TAR = ".tar"
SUFFIXES = (TAR, cells.PARQUET_SUFFIX, cells.ARROW_SUFFIX)  # the preferred one first

_READERS_OF_OBJECTS = 8  # tars of an object store that are indexed in parallel
_ROOT_STATE, _SPLITS_FILE = "state.json", "dataset_dict.json"
_PLACE = [("name", pa.binary()), ("file", pa.int32()), ("start", pa.int64()), ("size", pa.int64())]
_INDEX = pa.schema([*_PLACE, *((text, pa.string()) for text in tars.TEXTS)])
_logger = logging.getLogger(__name__)


def shards_in(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the shards among some files by split, which words of their paths name; empty without shards.

    All shards are under `ALL` if no path names a split. If only some paths do, the other shards belong to `train`. If there are several
    kinds of shards, only the first kind of `SUFFIXES` counts.
    """
    listed = sorted(names)
    found = next((some for suffix in SUFFIXES if (some := [name for name in listed if name.lower().endswith(suffix)])), [])
    splits: dict[str, list[str]] = {}
    for name in found:
        splits.setdefault(_split_in(name), []).append(name)
    if ALL in splits and len(splits) > 1:
        splits["train"] = sorted([*splits.get("train", []), *splits.pop(ALL)])
    return {split: splits[split] for split in (*SPLITS, ALL) if split in splits}


def _split_in(name: str) -> str:
    """The split that a word of a path names, as in `train-00000-of-00002.parquet` or `imagenet/val/000.tar`; else `ALL`."""
    for part in reversed(Path(name).with_suffix("").parts):
        words = re.findall("[a-z]+", part.casefold())
        if split := next((split for split, usual in SPLITS.items() for word in words if word in usual), None):
            return split
    return ALL


def saved_in(root: Path | str, names: Iterable[str]) -> dict[str, list[str]]:
    """Arrow files by split of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; empty for other folders.

    Args:
        root: the folder.
        names: files directly in it.

    Raises:
        DataError: if its JSON files are damaged, or it has no training split.
    """
    present = set(names)
    if _SPLITS_FILE in present:
        saved = [str(split) for split in _read_json(root, _SPLITS_FILE, "splits")]
        found = {split: _files_of(root, f"{one}/") for split in SPLITS for one in saved if _split_in(f"{one}/x") == split}
        if "train" not in found:
            raise DataError(f"{where(root, _SPLITS_FILE)}: splits {', '.join(saved)}; expected train, with optional validation and test")
        if left := [one for one in saved if _split_in(f"{one}/x") == ALL]:
            _logger.warning("%s: left out the splits %s", root, ", ".join(left))
        return found
    return {ALL: _files_of(root, "")} if {_ROOT_STATE, "dataset_info.json"} <= present else {}


def _files_of(root: Path | str, folder: str) -> list[str]:
    name = f"{folder}{_ROOT_STATE}"
    try:
        return [f"{folder}{one['filename']}" for one in _read_json(root, name, "_data_files")]
    except (TypeError, KeyError):
        raise DataError(f"{where(root, name)}: expected _data_files with a filename each; save the data set again") from None


def _read_json(root: Path | str, name: str, key: str) -> list[Any]:
    try:
        with open_file(root, name) as file:
            found = json.loads(file.readall())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where(root, name)}: damaged ({type(error).__name__}: {error}); save the data set again") from None
    return list(found)


def read_shards(root: Path | str, names: Sequence[str], columns: str | None = None) -> LabelTable:
    """Read shards of one kind as one table: the labels, and the place of each picture.

    Args:
        root: folder of the data set: a path, or the URI of an object store.
        names: paths of the shards relative to `root`.
        columns: value of the option `--columns`.

    Raises:
        DataError: if a shard is missing, damaged or cut off, or if there are no pictures.
        StoreError: if the object store cannot be reached.
    """
    table = _read_tars(root, names) if names[0].lower().endswith(TAR) else _read_cells(root, names, columns)
    if not table.rows.num_rows:
        raise DataError(f"{table.path}: no picture in {counted(len(names), 'file')}")
    return table


def _read_tars(root: Path | str, names: Sequence[str]) -> LabelTable:
    states = Pictures(root, np.array([os.fsencode(name) for name in names], np.bytes_)).states()
    key = hashlib.sha256(repr((str(root), names, states)).encode()).hexdigest()[:16]
    index = load_or_write(
        f"{SOURCES}/{Path(names[0]).stem}-{key}",
        lambda folder: pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow"))).read_all(),
        lambda folder: _write_index(folder, root, names),
    )
    has_picture = index["size"].is_valid()
    if lost := len(index) - (index := index.filter(has_picture)).num_rows:
        _logger.warning("%s: left out %s without a picture", where(root, names[0]), counted(lost, "key"))
    arrays = {column: index[column].to_numpy() for column in ("file", "start", "size")}
    pictures = Pictures(root, np.array(index["name"].to_pylist(), np.bytes_), Spans(tuple(names), **arrays))
    columns = {IMAGE: index["name"]} | {text: index[text] for text in ("cls", "txt") if index[text].null_count < len(index)}
    if index["json"].null_count < len(index):
        objects = [read_object(text or "", f"{pictures.where(row)}, member json") for row, text in enumerate(index["json"].to_pylist())]
        described = pa.Table.from_pylist(objects)
        columns = dict(zip(described.column_names, described.columns, strict=True)) | columns
    return LabelTable(root, where(root, names[0]), pa.table(columns), pictures)


def _write_index(folder: Path, root: Path | str, names: Sequence[str]) -> None:
    def read(name: str) -> list[tars.Sample]:
        path = where(root, name)
        with reading(path), tars.buffered(open_file(root, name)) if isinstance(root, str) else (root / name).open("rb") as file:
            return tars.read_samples(file, path)

    _logger.info("reading the index of %s", counted(len(names), "tar"))
    threads = _READERS_OF_OBJECTS if isinstance(root, str) else 1
    with ThreadPool(threads) as pool, pa.OSFile(str(folder / "index.arrow"), "wb") as sink, pa.ipc.new_file(sink, _INDEX) as writer:
        for number, (name, samples) in enumerate(zip(names, pool.imap(read, names), strict=True)):
            places = [one.picture or (one.key, None, None) for one in samples]
            columns = [
                [os.fsencode(f"{name}/{member}") for member, _, _ in places],
                [number] * len(places),
                *([place[item] for place in places] for item in (1, 2)),
                *([one.texts.get(text) for one in samples] for text in tars.TEXTS),
            ]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, _INDEX, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=_INDEX))
    (folder / "entry.json").write_text("{}", encoding="utf-8")


def _read_cells(root: Path | str, names: Sequence[str], columns: str | None) -> LabelTable:
    path = where(root, names[0])
    with reading(path), open_file(root, names[0]) as file:
        schema = cells.read_schema(file, names[0])
    known: Mapping[str, tuple[str, ...]] = cells.class_names(schema)
    image = choose_image(cells.picture_columns(schema), path, columns)
    parts = [] if image is None else [_read_cell_file(root, name, image) for name in names]
    if image is None or all(part.spans is None for part in parts):
        plain = [part.rows.append_column(str(image), part.paths) for part in parts] or [_read_rows(root, name) for name in names]
        return LabelTable(root, path, pa.concat_tables(plain), class_names=known)
    spans = Spans.join([part.spans for part in parts if part.spans is not None])
    if len(empty := np.flatnonzero(spans.size < 0)):
        raise DataError(f"{path}, row {empty[0] + 1}: column {image} is empty; remove the row")
    numbered = [os.fsencode(f"{name}/row{row + 1}") for name, part in zip(names, parts, strict=True) for row in range(len(part.rows))]
    pictures = Pictures(root, np.array(numbered, np.bytes_), spans)
    rows = pa.concat_tables([part.rows for part in parts]).append_column(image, pa.array(numbered, pa.binary()))
    return LabelTable(root, path, rows, pictures, known)


def _read_rows(root: Path | str, name: str) -> pa.Table:
    if name.lower().endswith(cells.PARQUET_SUFFIX):
        return read_table(root, name).rows
    raise DataError(f"{where(root, name)}: no column of pictures; expected bytes, or the type Image of datasets")


def _read_cell_file(root: Path | str, name: str, image: str) -> cells.CellFile:
    path = where(root, name)
    with reading(path), open_file(root, name) as file:
        if name.lower().endswith(cells.ARROW_SUFFIX):
            return cells.read_arrow(file, name, image, path)
        (state,) = Pictures(root, np.array([os.fsencode(name)], np.bytes_)).states()
        return cells.read_parquet(file, name, image, path, state or (0, 0))

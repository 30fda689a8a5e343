"""Pictures in cells of Arrow and Parquet files, as Hugging Face's `datasets` writes them.

An Arrow file holds each picture in one piece, so only its position is stored. Parquet compresses cells in pages, so the pictures are
unpacked once into the local cache, which takes as much disk space as the pictures. How `datasets` describes columns:
https://huggingface.co/docs/datasets/about_dataset_features
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cifar_ray.data.reading.local_cache import SOURCES, check_space, load_or_write
from cifar_ray.data.reading.picture_source import Spans, reading
from cifar_ray.errors import DataError

ARROW_SUFFIX, PARQUET_SUFFIX = ".arrow", ".parquet"

_FILE_MAGIC = b"ARROW1\0\0"  # start of Arrow's file format; the stream format, which `datasets` writes, has no magic bytes
_ROWS_AT_ONCE = 1000
_PICTURES, _SIZES = "pictures.bin", "sizes.npy"


@dataclass(frozen=True, eq=False)
class CellFile:
    """A file with pictures in cells.

    Attributes:
        rows: all columns but the pictures, N rows.
        image: name of the column of pictures.
        spans: position of each picture; an empty cell has size -1. `None` if the column holds paths only.
        paths: path of each picture, which may be empty; `None` if the file has no paths.
    """

    rows: pa.Table
    image: str
    spans: Spans | None
    paths: pa.ChunkedArray | None


def picture_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that may hold pictures: bytes, or a struct with a field `bytes`."""
    return [field.name for field in schema if _bytes_of(field.type) is not None]


def class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Class names of each column of type `ClassLabel`, from the metadata that `datasets` adds to a schema; empty without it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {column: tuple(map(str, one["names"])) for column, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):  # not written by `datasets`
        return {}


def read_schema(file: pa.NativeFile, name: str) -> pa.Schema:
    """The schema of an Arrow or Parquet file."""
    if name.lower().endswith(PARQUET_SUFFIX):
        from pyarrow import parquet

        return parquet.read_schema(file)
    return pa.ipc.read_schema(_messages(file).read_next_message())


def read_arrow(file: pa.NativeFile, name: str, image: str, where: str) -> CellFile:
    """Find the position of each picture of an Arrow file, one record batch at a time.

    Args:
        file: the file.
        name: path of the file relative to the folder of the data set.
        image: name of the column of pictures.
        where: path of the file, for messages.

    Raises:
        DataError: if the record batches are compressed, or if the file has messages of another type.
    """
    reader = _messages(file)
    schema = pa.ipc.read_schema(reader.read_next_message())
    batches, paths, starts, sizes = [], [], [], []
    for message in reader:
        if message.type != "record batch":
            raise DataError(f"{where}: it has a {message.type}, which is not supported; write it again with Dataset.save_to_disk")
        body = message.body
        batch = pa.ipc.read_record_batch(message, schema)
        cells = batch.column(image)
        content = cells if _bytes_of(cells.type) == "" else cells.field("bytes")
        start, size = _places(content)
        inside = file.tell() - body.size + start - body.address
        held = start[size > 0]
        if len(held) and not body.address <= held.min() <= held.max() <= body.address + body.size:
            raise DataError(f"{where}: its record batches are compressed; write it again with Dataset.save_to_disk")
        starts.append(inside)
        sizes.append(size)
        paths.append(_paths_of(cells))
        batches.append(batch.drop_columns([image]).take(pa.array(np.arange(len(batch)))))  # a copy, so that the pictures can be freed
    rows = pa.Table.from_batches(batches, schema.remove(schema.get_field_index(image)))
    sizes_of_all = np.concatenate([*sizes, np.empty(0, np.int64)])
    spans = Spans((name,), np.zeros(len(rows), np.int32), np.concatenate([*starts, np.empty(0, np.int64)]), sizes_of_all)
    return _with_paths(rows, image, spans, pa.chunked_array(paths, pa.string()))


def read_parquet(file: pa.NativeFile, name: str, image: str, where: str, state: tuple[int, int]) -> CellFile:
    """Unpack the pictures of a Parquet file into the local cache, unless it already has them.

    Args:
        file: the file.
        name: path of the file relative to the folder of the data set.
        image: name of the column of pictures.
        where: path of the file, for messages.
        state: size of the file in bytes, and its modification time in ns.
    """
    from pyarrow import parquet

    content = parquet.ParquetFile(file)
    others = [column for column in content.schema_arrow.names if column != image]
    key = hashlib.sha256(f"{where}\0{state}\0{image}".encode()).hexdigest()[:16]
    entry = f"{SOURCES}/{Path(name).stem}-{key}"
    pictures, sizes = load_or_write(
        entry,
        lambda folder: (str((folder / _PICTURES).resolve(strict=True)), np.load(folder / _SIZES)),
        lambda folder: _unpack(folder, content, image, where),
    )
    rows = content.read(columns=others) if others else pa.table({})
    starts = np.concatenate([[0], np.cumsum(np.maximum(sizes, 0))])[:-1]
    spans = Spans((pictures,), np.zeros(len(sizes), np.int32), starts, sizes)
    paths = None
    if (sizes < 0).any() and _bytes_of(content.schema_arrow.field(image).type):
        paths = content.read(columns=[f"{image}.path"])[image].combine_chunks().field("path")
    return _with_paths(rows, image, spans, None if paths is None else pa.chunked_array([paths]))


def _unpack(folder: Path, content: Any, image: str, where: str) -> None:
    """Write the pictures of a Parquet file one after the other, and their sizes."""
    groups = [content.metadata.row_group(number) for number in range(content.metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    check_space(folder, sum(one.total_uncompressed_size for one in columns if one.path_in_schema.partition(".")[0] == image))
    sizes = [np.empty(0, np.int64)]
    column = f"{image}.bytes" if _bytes_of(content.schema_arrow.field(image).type) else image
    with (folder / _PICTURES).open("wb") as file:
        batches = content.iter_batches(_ROWS_AT_ONCE, columns=[column])
        while (batch := _next(batches, where)) is not None:
            cells = batch.column(0)
            cells = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
            _, size = _places(cells)
            for cell in cells:
                if cell.is_valid:
                    file.write(cell.as_buffer())
            sizes.append(size)
    np.save(folder / _SIZES, np.concatenate(sizes))
    (folder / "entry.json").write_text("{}", encoding="utf-8")


def _next(batches: Iterator[pa.RecordBatch], where: str) -> pa.RecordBatch | None:
    with reading(where):
        return next(batches, None)


def _with_paths(rows: pa.Table, image: str, spans: Spans, paths: pa.ChunkedArray | None) -> CellFile:
    """Build a `CellFile`, without spans if no cell has more than a path."""
    return CellFile(rows, image, None if paths is not None and len(rows) and (spans.size < 0).all() else spans, paths)


def _bytes_of(kind: pa.DataType) -> str | None:
    """Name of the field that holds the bytes of a picture; empty if the value itself does, `None` if the type holds no bytes."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return ""
    is_image = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _bytes_of(kind.field("bytes").type) == ""
    return "bytes" if is_image else None


def _paths_of(cells: pa.Array) -> pa.Array:
    if pa.types.is_struct(cells.type) and cells.type.get_field_index("path") >= 0:
        return cells.field("path").cast(pa.string())
    return pa.nulls(len(cells), pa.string())


def _places(cells: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Address and size of each value in memory, int64 `[N]`; size -1 without a value."""
    kind = np.int64 if pa.types.is_large_binary(cells.type) else np.int32
    _, offsets, data = cells.buffers()
    if not len(cells) or offsets is None or data is None:
        return np.zeros(len(cells), np.int64), np.full(len(cells), -1, np.int64)
    ends = np.frombuffer(offsets, kind)[cells.offset : cells.offset + len(cells) + 1].astype(np.int64)
    return ends[:-1] + data.address, np.where(cells.is_valid().to_numpy(zero_copy_only=False), np.diff(ends), -1)


def _messages(file: pa.NativeFile) -> pa.ipc.MessageReader:
    file.seek(0)
    if file.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
        file.seek(0)
    return pa.ipc.MessageReader.open_stream(file)

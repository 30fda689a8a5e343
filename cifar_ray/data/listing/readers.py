"""Read a table of labels: CSV, TSV, JSON Lines, JSON, Parquet, or an export of a labelling tool, which becomes a table of two columns."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cifar_ray.data.reading.picture_source import Pictures, open_file, where
from cifar_ray.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
IMAGE, LABEL = "image", "label"

_DELIMITERS = (",", "\t", ";", "|")
_HEADER_BYTES = 65_536


@dataclass(frozen=True, eq=False)
class LabelTable:
    """A table that was read.

    Attributes:
        root: folder of the pictures: a path, or the URI of an object store.
        path: path of the table's file, for messages.
        rows: content of the table, N rows.
        pictures: the N pictures, if the table or a tar holds them; `None` if a column has their paths.
        class_names: for columns of numbers, the class names in the order of the numbers, by column.
    """

    root: Path | str
    path: str
    rows: pa.Table
    pictures: Pictures | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def at(self, row: int) -> str:
        """Location of a row for messages; rows count from 0 here, and from 1 in the text."""
        return f"{self.path}, row {row + 1}" if self.pictures is None else self.pictures.where(row)


def read_table(root: Path | str, name: str) -> LabelTable:
    """Read a table; values of a text format stay text.

    Args:
        root: its folder: a path, or the URI of an object store.
        name: path of the file relative to it.

    Raises:
        DataError: if the file cannot be read, is empty or damaged; the message names the row.
        StoreError: if the object store cannot be reached.
    """
    path = where(root, name)
    try:
        with open_file(root, name) as file:
            table = _READERS[Path(name).suffix.lower()](path, file)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected text in UTF-8; convert the file, for example with: iconv -f latin1 -t utf-8") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    if not table.num_rows:
        raise DataError(f"{path}: the table has no rows")
    return LabelTable(root, path, table)


def _read_csv(path: str, file: pa.NativeFile) -> pa.Table:
    from pyarrow import csv

    data = file.read_buffer()
    head = data.slice(0, min(_HEADER_BYTES, data.size)).to_pybytes().decode("utf-8-sig", errors="replace").splitlines()
    if not head:
        raise DataError(f"{path}: the file is empty")
    delimiter = "\t" if path.lower().endswith(".tsv") else max(_DELIMITERS, key=head[0].count)
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=False)
    names = csv.open_csv(pa.BufferReader(data), parse_options=parse).schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: the header has the column {twice!r} twice; rename one of them")
    return csv.read_csv(
        pa.BufferReader(data),
        parse_options=parse,
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )


def _read_json_lines(path: str, file: pa.NativeFile) -> pa.Table:
    return pa.Table.from_pylist(list(_objects(path, file)))


def _objects(path: str, file: pa.NativeFile) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(file.readall()), "utf-8-sig"), 1):
        if line.strip():
            yield read_object(line, f"{path}, line {number}")


def read_object(text: str, where: str) -> dict[str, Any]:
    """Read a JSON object whose values describe a picture.

    Raises:
        DataError: if the text is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{where}: not JSON ({what}); mend or remove it: {text.strip()[:60]}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with the picture and its label, got {text.strip()[:60]}")
    return {key: _plain(item) for key, item in value.items()}


def _plain(value: Any) -> str | list[str] | None:
    """Convert a value to text, or to a list of texts, so that a column has one type."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, (str, int)) for item in value):
        return [str(item) for item in value]
    return json.dumps(value, ensure_ascii=False)


def _read_json(path: str, file: pa.NativeFile) -> pa.Table:
    """A list of objects, or an export of Label Studio or COCO."""
    try:
        content = json.loads(file.readall().decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if isinstance(content, dict) and {"images", "categories", "annotations"} <= content.keys():
        return _of_coco(path, content)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise DataError(f"{path}: expected a list of objects, or an export of Label Studio or COCO")
    if content and all("data" in task and "annotations" in task for task in content):
        return _of_label_studio(path, content)
    return pa.Table.from_pylist([{key: _plain(value) for key, value in row.items()} for row in content])


def _of_coco(path: str, content: dict[str, Any]) -> pa.Table:
    """Classification as COCO and CVAT export it: one category for each image."""
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        found: dict[Any, set[str]] = {}
        for annotation in content["annotations"]:
            found.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
        images = [(str(image["file_name"]), sorted(found.get(image["id"], ()))) for image in content["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged COCO export: {type(error).__name__} {error}") from None
    return _of_pairs(images)


def _of_label_studio(path: str, tasks: list[dict[str, Any]]) -> pa.Table:
    """Label Studio's JSON export: the choices of the first annotation of each task."""
    images = []
    try:
        for task in tasks:
            image = next((str(value) for value in task["data"].values() if isinstance(value, str)), "")
            results = task["annotations"][0]["result"] if task["annotations"] else []
            choices = [choice for result in results for choice in result.get("value", {}).get("choices", ())]
            images.append((_uploaded(image), choices))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: damaged export of Label Studio: {type(error).__name__} {error}") from None
    return _of_pairs(images)


def _uploaded(url: str) -> str:
    """Name of the uploaded file: Label Studio puts eight characters and a hyphen before it, or gives it in the query of the URL."""
    name = url.partition("?d=")[2] or url
    return re.sub(r"^.*/upload/\d+/[0-9a-f]{8}-", "", name)


def _of_pairs(images: list[tuple[str, list[str]]]) -> pa.Table:
    """Pictures with their labels; those that nobody has labelled are left out."""
    rows = [(image, labels) for image, labels in images if labels]
    return pa.table({IMAGE: [image for image, _ in rows], LABEL: pa.array([labels for _, labels in rows], pa.list_(pa.string()))})


def _read_parquet(_: str, file: pa.NativeFile) -> pa.Table:
    from pyarrow import parquet

    return parquet.read_table(file)


_READERS: dict[str, Callable[[str, pa.NativeFile], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}

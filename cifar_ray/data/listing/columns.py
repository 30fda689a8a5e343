"""Find the columns of a table that hold picture, label and split."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.listing.readers import LabelTable
from cifar_ray.errors import DataError

# Usual names, the preferred one first; compared in lower case and without punctuation
_NAMES = {
    "image": [
        "image",
        "file_name",
        "filename",
        "image_path",
        "filepath",
        "path",
        "file",
        "img",
        "image_name",
        "picture",
        "photo",
        "image_id",
        "img_name",
        "image_file",
        "id",
    ],
    "label": ["class_name", "label_name", "label", "class", "category", "species", "breed", "target", "choice", "labels", "classes", "y"],
    "split": ["split", "set", "subset", "partition", "data_set", "dataset", "part"],
}
_SAMPLE = 200
_MOSTLY = 0.9


@dataclass(frozen=True)
class Columns:
    """Names of the columns.

    Attributes:
        image: path of the picture.
        labels: the label, or several columns of 0 and 1, one for each class.
        split: `train`, `val` or `test`; `None` without such a column.
    """

    image: str
    labels: tuple[str, ...]
    split: str | None

    @property
    def is_one_hot(self) -> bool:
        """Whether each class has a column of its own."""
        return len(self.labels) > 1


def parse_columns(text: str | None) -> dict[str, str]:
    """Parse `image=…,label=…,split=…`.

    Raises:
        DataError: if the text has another form.
    """
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    for key, _, name in pairs:
        if key not in _NAMES or not name:
            raise DataError(f"--columns {text}: expected image=COLUMN,label=COLUMN,split=COLUMN, each of them optional")
    return {key: name for key, _, name in pairs}


def find_columns(table: LabelTable, chosen: str | None = None) -> Columns:
    """Find the columns by their names, else by their content.

    Args:
        table: the table.
        chosen: `--columns` of the user.

    Raises:
        DataError: if a column is missing or ambiguous; the message lists the columns and the option.
    """
    wanted, names = parse_columns(chosen), list(table.rows.column_names)
    for key, name in wanted.items():
        if name not in names:
            raise DataError(f"{table.path}: --columns {key}={name}: no such column. Available: {', '.join(names)}")
    image = (
        wanted.get("image")
        or _by_name("image", names)
        or _only(table, "image", [name for name in names if _holds_files(table.rows[name])], names)
    )
    split = wanted.get("split") or _by_name("split", names)
    rest = [name for name in names if name not in (image, split)]
    label = wanted.get("label") or _by_name("label", rest)
    if label is None and len(rest) > 1 and all(_is_binary(table.rows[name]) for name in rest):
        return Columns(image, tuple(rest), split)
    return Columns(image, (label or _only(table, "label", rest, names),), split)


def _only(table: LabelTable, key: str, found: list[str], names: list[str]) -> str:
    if len(found) == 1:
        return found[0]
    problem = f"{' and '.join(found)} could be it" if found else "none looks like it"
    raise DataError(f"{table.path}: which column is the {key}? {problem}. Columns: {', '.join(names)}; name it with --columns {key}=COLUMN")


def _by_name(key: str, names: list[str]) -> str | None:
    plain = {re.sub(r"[\W_]+", "", name.casefold()): name for name in reversed(names)}
    return next((plain[word] for usual in _NAMES[key] if (word := usual.replace("_", "")) in plain), None)


def _holds_files(column: pa.ChunkedArray) -> bool:
    values = [str(value) for value in column.slice(0, _SAMPLE).to_pylist() if value is not None]
    return bool(values) and sum(value.lower().endswith(SUFFIXES) for value in values) >= _MOSTLY * len(values)


def _is_binary(column: pa.ChunkedArray) -> bool:
    try:
        return set(pc.unique(column.cast(pa.float64())).to_pylist()) <= {0.0, 1.0}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False

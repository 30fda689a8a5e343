"""Find the columns of a table that hold picture, label, split, weight, and names and descriptions of classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.listing.readers import IMAGE, LabelTable
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
    "label": [
        "class_name",
        "label_name",
        "label",
        "class",
        "category",
        "species",
        "breed",
        "target",
        "choice",
        "labels",
        "classes",
        "y",
        "cls",
        "txt",
    ],
    "split": ["split", "set", "subset", "partition", "data_set", "dataset", "part"],
    "weight": ["weight", "sample_weight", "loss_weight"],
    "name": ["class_name", "label_name", "category_name", "txt"],
    "description": ["class_description", "label_description", "description"],
}
FORM = ",".join(f"{key}=COLUMN" for key in _NAMES)
_OPTIONAL = ("split", "weight", "name", "description")
_SAMPLE = 200
_logger = logging.getLogger(__name__)
_MOSTLY = 0.9


@dataclass(frozen=True)
class Columns:
    """Names of the columns.

    Attributes:
        image: path of the picture.
        labels: the label, or several columns of 0 and 1, one for each class.
        name: name of the class, if the labels are numbers; `None` without such a column.
        split: `train`, `val` or `test`; `None` without such a column.
        weight: weight in the loss; `None` without such a column.
        description: description of the class; `None` without such a column. If the user did not name it, it may hold something else.
    """

    image: str
    labels: tuple[str, ...]
    name: str | None = None
    split: str | None = None
    weight: str | None = None
    description: str | None = None

    @property
    def is_one_hot(self) -> bool:
        """Whether each class has a column of its own."""
        return len(self.labels) > 1


def parse_columns(text: str | None) -> dict[str, str]:
    """Parse `image=…,label=…,split=…,weight=…,name=…,description=…`; `weight=` without a value means that there is no such column.

    An empty value is also allowed for `split`, `name` and `description`.

    Raises:
        DataError: if the text has another form.
    """
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    for key, _, name in pairs:
        if key not in _NAMES or not (name or key in _OPTIONAL):
            raise DataError(f"--columns {text}: expected {FORM}, each of them optional")
    return {key: name for key, _, name in pairs}


def find_columns(table: LabelTable, chosen: str | None = None) -> Columns:
    """Find the columns by their names, else by their content.

    Args:
        table: the table.
        chosen: value of the option `--columns`.

    Raises:
        DataError: if a column is missing or ambiguous; the message lists the columns and the option.
    """
    wanted, names = parse_columns(chosen), list(table.rows.column_names)
    for key, name in wanted.items():
        if name and name not in names:
            raise DataError(f"{table.path}: --columns {key}={name}: no such column. Available: {', '.join(names)}")
    image = find_image(table, wanted.get("image"))
    split, weight = (wanted.get(key, _by_name(key, names)) or None for key in ("split", "weight"))
    described = wanted.get("description") or None
    rest = [name for name in names if name not in (image, split, weight, described)]
    label = wanted.get("label") or _by_name("label", rest)
    if label is None and len(rest) > 1 and all(_is_binary(table.rows[name]) for name in rest):
        return Columns(image, tuple(rest), split=split, weight=weight, description=described)
    label = label or _only(table, "label", rest, names)
    labels, title = _numbered(table, label, [column for column in rest if column != label], wanted)
    if "description" not in wanted:  # only now, because the only column beside the picture is the label, whatever its name
        described = _by_name("description", [column for column in rest if column not in (*labels, title)])
    return Columns(image, labels, title, split, weight, described)


def find_image(table: LabelTable, wanted: str | None = None) -> str:
    """Find the column of pictures: the one that the user wants, else by its name, else by its content.

    Raises:
        DataError: if it is missing or ambiguous.
    """
    names = list(table.rows.column_names)
    return (
        wanted
        or (IMAGE if table.pictures is not None and IMAGE in names else None)
        or _by_name("image", names)
        or _only(table, "image", [name for name in names if _holds_files(table.rows[name])], names)
    )


def choose_image(found: Sequence[str], path: str, chosen: str | None) -> str | None:
    """Choose the column of pictures from the columns `found` that hold bytes; `None` if there is none, or if the user names another one.

    Raises:
        DataError: if there are several, and neither the user nor the names say which.
    """
    wanted = parse_columns(chosen).get("image")
    if wanted is not None or not found:
        return wanted if wanted in found else None
    if len(found) > 1 and _by_name("image", list(found)) is None:
        raise DataError(f"{path}: which column is the image? {' and '.join(found)} hold bytes; name it with --columns image=COLUMN")
    return _by_name("image", list(found)) or found[0]


def _numbered(table: LabelTable, label: str, others: list[str], wanted: dict[str, str]) -> tuple[tuple[str], str | None]:
    """Column of the labels; and column of the class names, if the table has both numbers and names and they match one to one."""
    if "name" in wanted:
        return (label,), wanted["name"] or None
    is_name = "label" not in wanted and _by_name("name", [label]) is not None
    number, name = (_by_name("label", others), label) if is_name else (label, _by_name("name", others))
    if number is None or name is None:
        return (label,), None
    if not _are_numbers_with_names(table.rows[number], table.rows[name]):
        unused = number if label == name else name
        _logger.info("%s: column %s is not used, because %s and %s do not belong together one to one", table.path, unused, number, name)
        return (label,), None
    return (number,), name


def _are_numbers_with_names(numbers: pa.ChunkedArray, names: pa.ChunkedArray) -> bool:
    try:
        numbers.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    pairs = pa.table({"number": numbers, "name": names}).group_by(["number", "name"]).aggregate([])
    return bool(pairs.num_rows == pc.count_distinct(pairs["number"]).as_py() == pc.count_distinct(pairs["name"]).as_py())


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

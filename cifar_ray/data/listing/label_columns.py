"""Labels of a table: one class per row, or a set of labels per row."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cifar_ray.config import TaskName
from cifar_ray.data.listing.categories import Categories
from cifar_ray.data.listing.columns import Columns
from cifar_ray.data.listing.readers import LabelTable
from cifar_ray.errors import DataError

_DELIMITERS = ("|", ";", ",")
_MOSTLY = 0.9
_NAMED = 3
_SAMPLE = 1000
_MANY_VALUES = 20
_ANYWAY = "--task multi-label takes any number of labels"


@dataclass(frozen=True, eq=False)
class LabelSets:
    """A set of labels for each of N rows.

    Attributes:
        values: the V different labels.
        marks: uint8 `[N, V]`, 1 where a row has the label.
        form: how the table writes the sets, for messages.
    """

    values: tuple[str, ...]
    marks: npt.NDArray[np.uint8]
    form: str

    @classmethod
    def of(cls, sets: Sequence[Sequence[str]], form: str, codes: npt.NDArray[np.int64] | None = None) -> LabelSets:
        """Encode sets of labels.

        Args:
            sets: labels of each row, or with `codes`, labels of each different set.
            form: how the table writes the sets.
            codes: int64 `[N]`, for each row the index of its set in `sets`.
        """
        cleaned = [[text for label in labels if (text := clean_label(label))] for labels in sets]
        values = tuple(dict.fromkeys(label for labels in cleaned for label in labels))
        number_of = {label: number for number, label in enumerate(values)}
        marks = np.zeros((len(cleaned), len(values)), np.uint8)
        for row, labels in enumerate(cleaned):
            marks[row, [number_of[label] for label in labels]] = 1
        return cls(values, marks if codes is None else marks[codes], form)

    def __len__(self) -> int:
        return len(self.marks)

    def take(self, rows: npt.NDArray[np.bool_]) -> LabelSets:
        """The rows where a mask, bool `[N]`, is true."""
        return LabelSets(self.values, self.marks[rows], self.form)

    def first_row(self, label: str) -> int | None:
        """Number of the first row with a label, from 0; `None` if no row has it."""
        rows = np.flatnonzero(self.map({label: 0}))
        return int(rows[0]) if len(rows) else None

    def present(self) -> set[str]:
        """The labels that occur in at least one row."""
        return {self.values[number] for number in np.flatnonzero(self.marks.any(axis=0))}

    def map(self, numbers: Mapping[str, int]) -> npt.NDArray[np.uint8]:
        """The labels of each row, uint8 `[N, C]` of 0 and 1; `numbers` gives the column of each label."""
        result = np.zeros((len(self), len(numbers)), np.uint8)
        for column, label in enumerate(self.values):
            if label in numbers:
                result[:, numbers[label]] = self.marks[:, column]
        return result

    def describe(self) -> str:
        """Summary of how the labels were read, for a log message."""
        each = self.marks.sum(axis=1)
        return f"several labels for each picture ({self.form}): {each.mean():.1f} on average, {np.count_nonzero(each == 0):,} rows without"


def read_labels(table: LabelTable, columns: Columns, task: TaskName | None = None) -> Categories | LabelSets:
    """Read the labels of all rows of a table.

    A table writes several labels as a list, as a text with a delimiter, or as a 1 in several columns. A text is divided at `|` or `;` if
    some part occurs in several texts. Commas are common in names. So a text is divided at commas only if all parts of at least 90 % of
    such texts occur in several texts, and more than half of the labels are alone in some text.

    Args:
        table: the table.
        columns: where the labels are.
        task: whether a row has one label or several; `None` finds out.

    Raises:
        DataError: with row number and value, if a row has several labels or none where one is needed, or if the labels are unusable.
    """
    if columns.is_one_hot:
        return _one_hot(table, columns, task)
    name = columns.labels[0]
    column = table.rows[name]
    if pa.types.is_list(column.type):
        lists = [[str(label) for label in labels or ()] for labels in column.to_pylist()]
        if task == "multi-label" or (task is None and any(len(set(labels)) > 1 for labels in lists)):
            return LabelSets.of(lists, f"lists in column {name}")
        for row, labels in enumerate(lists):
            if len(set(labels)) != 1:
                raise DataError(f"{table.at(row)}: column {name} has {', '.join(labels) or 'no label'}; expected one label; {_ANYWAY}")
        column = pa.chunked_array([pa.array([labels[0] for labels in lists])])
    texts = Categories.of(column, clean_label)
    if task != "single-label" and (sets := _divide(texts, name, must=task == "multi-label")) is not None:
        return sets
    return _checked(table, texts, name)


def clean_label(text: str) -> str:
    """A label without spaces around it, in Unicode's composed form."""
    return unicodedata.normalize("NFC", text.strip())


def _one_hot(table: LabelTable, columns: Columns, task: TaskName | None) -> Categories | LabelSets:
    marks = np.stack([table.rows[name].cast(pa.float64()).to_numpy() for name in columns.labels], axis=1)
    counts = marks.sum(axis=1)
    if task == "multi-label" or (task is None and (counts > 1).any()):
        return LabelSets(tuple(map(clean_label, columns.labels)), marks.astype(np.uint8), f"{len(columns.labels)} columns of 0 and 1")
    if (wrong := np.flatnonzero(counts != 1)).size:
        row = int(wrong[0])
        which = f"{int(counts[row])} of the columns {', '.join(columns.labels[:_NAMED])}, … are 1"
        raise DataError(f"{table.at(row)}: {which}; expected one label; {_ANYWAY}")
    return Categories(columns.labels, marks.argmax(axis=1))


def _divide(texts: Categories, name: str, *, must: bool) -> LabelSets | None:
    """The labels in texts such as `cat|dog` or `["cat", "dog"]`; `None` if each text is one label."""
    written = [text for text in texts.values if text]
    if written and all(re.fullmatch(r"\[.*\]", text) for text in written):
        return LabelSets.of([_of_list(text) for text in texts.values], f"lists in column {name}", texts.codes)
    for delimiter in _DELIMITERS:
        sets = [[part for label in text.split(delimiter) if (part := label.strip())] for text in texts.values]
        if any(delimiter in text for text in written) and (must or _are_sets(sets, strict=delimiter == ",")):
            return LabelSets.of(sets, f"column {name}, separated by {delimiter!r}", texts.codes)
    return LabelSets.of([[text] for text in texts.values], f"column {name}", texts.codes) if must else None


def _of_list(text: str) -> list[str]:
    """The labels of a list as JSON or Python writes it, also without quotes."""
    with suppress(ValueError, SyntaxError):
        values = ast.literal_eval(text) if text else []
        return [str(value) for value in values]
    return [part.strip().strip("'\"") for part in text[1:-1].split(",")]


def _are_sets(sets: list[list[str]], *, strict: bool) -> bool:
    """Whether the parts of divided texts are labels, by the rules of `read_labels`; `strict` for commas."""
    uses = Counter(part for parts in sets for part in set(parts))
    several = [parts for parts in sets if len(parts) > 1]
    if not strict:
        return any(uses[part] > 1 for parts in several for part in parts)
    alone = {parts[0] for parts in sets if len(parts) == 1}
    known = sum(all(uses[part] > 1 for part in parts) for parts in several)
    return bool(several) and known >= _MOSTLY * len(several) and 2 * len(alone & uses.keys()) > len(uses)


def _checked(table: LabelTable, labels: Categories, name: str) -> Categories:
    if (row := labels.first_row("")) is not None:
        raise DataError(f"{table.at(row)}: column {name} is empty; write the label, or remove the row")
    if len(labels.values) > _MANY_VALUES and all(_is_fraction(label) for label in labels.values[:_SAMPLE]):
        raise DataError(
            f"{table.path}: column {name} holds numbers such as {labels.values[0]}: predicting a number is regression, "
            "which is not supported"
        )
    if len(labels.values) == len(labels) > 2:
        one, other = labels.values[:2]
        raise DataError(
            f"{table.path}: column {name} has another value in each row ({one}, {other}, …); name the label with --columns label=COLUMN"
        )
    return labels


def _is_fraction(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", text, re.IGNORECASE) is not None

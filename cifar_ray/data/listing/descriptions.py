"""Descriptions of classes, from a column of a table that repeats one text in all rows of a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cifar_ray.config import MAX_DESCRIPTION_LENGTH
from cifar_ray.data.listing.categories import Categories
from cifar_ray.data.listing.label_columns import LabelSets, clean_label
from cifar_ray.data.listing.layouts import is_unprintable
from cifar_ray.data.listing.readers import LabelTable
from cifar_ray.errors import DataError

_SHOWN = 200  # characters of a text in a message
_CONTEXT = 20  # of these, before the first difference


def read_descriptions(table: LabelTable, column: str, labels: Categories | LabelSets) -> dict[str, str]:
    """Read the description of each class.

    Args:
        table: the table, N rows.
        column: the column of descriptions. Empty cells are allowed, and a class may have none.
        labels: labels of the N rows.

    Returns:
        Description by label, without the labels that have none.

    Raises:
        DataError: if a class has two different texts, a text is too long or unprintable, the column holds no texts, or a row may have
            several labels.
    """
    if isinstance(labels, LabelSets):
        raise DataError(f"{table.path}: column {column}: pictures with several labels cannot have descriptions of classes")
    try:
        encoded = pc.fill_null(table.rows[column].cast(pa.large_string()), "").combine_chunks().dictionary_encode()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{table.path}: column {column} has no texts but {table.rows[column].type}") from None
    texts, codes = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
    # A column of captions has a million different texts, so each is looked at only until the first difference.
    pairs, rows = np.unique(labels.codes * len(texts) + codes, return_index=True)
    found: dict[str, str] = {}
    for pair, row in zip(pairs, rows, strict=True):
        text = clean_label(texts[int(pair) % len(texts)].as_py())
        if text:
            label = labels.values[int(pair) // len(texts)]
            _check(text, f"{table.at(int(row))}: column {column}", label)
            _add(found, label, text, f"{table.at(int(row))}: column {column}")
    return found


def join_descriptions(path: str, parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Join the descriptions by label of several tables.

    Raises:
        DataError: if a class has two different texts.
    """
    found: dict[str, str] = {}
    for part in parts:
        for label, text in part.items():
            _add(found, label, text, path)
    return found


def _check(text: str, where: str, label: str) -> None:
    if len(text) > MAX_DESCRIPTION_LENGTH:
        raise DataError(f"{where}: the description of {label} has {len(text):,} characters; the maximum is {MAX_DESCRIPTION_LENGTH:,}")
    if is_unprintable(text):
        raise DataError(f"{where}: the description of {label} has unprintable characters or line breaks: {_brief(text)!a}")


def _add(found: dict[str, str], label: str, text: str, where: str) -> None:
    known = found.setdefault(label, text)
    if known != text:
        pairs = zip(known, text, strict=False)
        same = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(known), len(text)))
        here, elsewhere = (_brief(one, max(0, same - _CONTEXT)) for one in (text, known))
        raise DataError(f"{where} describes {label} as {here!r}, and elsewhere as {elsewhere!r}; use one text for each class")


def _brief(text: str, start: int = 0) -> str:
    start = start if len(text) > _SHOWN else 0
    return ("…" if start else "") + text[start : start + _SHOWN] + ("…" if len(text) > start + _SHOWN else "")

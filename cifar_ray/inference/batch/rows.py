"""The prediction for a picture as a row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from cifar_ray.config import printable

_RANKED = pa.struct([("class_id", pa.int32()), ("class_name", pa.string()), ("probability", pa.float32())])
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("class_id", pa.int32()),
        ("class_name", pa.string()),
        ("confidence", pa.float32()),
        ("abstain", pa.bool_()),
        ("top_k", pa.list_(_RANKED)),
        ("error", pa.string()),
    ]
)
"""A row per picture, with one class each; `error` is empty for a prediction, and all but `file` and `error` are empty for an error."""

Row = dict[str, Any]


SET_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("labels", pa.list_(_RANKED)),
        ("abstain", pa.bool_()),
        ("top_k", pa.list_(_RANKED)),
        ("error", pa.string()),
    ]
)
"""The same with several labels per picture: those that are given, most probable first; the list may be empty."""


class Classifier(Protocol):
    """Classifies picture files."""

    def __call__(self, names: Sequence[str]) -> pa.Table:
        """Rows of `SCHEMA` or `SET_SCHEMA`, in the order of `names`; a picture that cannot be decoded has a row with an error."""


class PartSource(Protocol):
    """The pictures of a server's job, whose names are in files; it can be pickled for the workers."""

    def names(self, number: int) -> tuple[str, ...]:
        """Names of the pictures of part `number`."""

    def read(self, name: str) -> bytes:
        """Read a picture; raises `ImageError`, and `StoreError` if the whole storage cannot be reached."""


def sound_row(name: str, ranked: list[Row], abstain: bool) -> Row:
    """A row of `SCHEMA` with a prediction; `ranked` contains at least one class, most probable first."""
    best = ranked[0]
    return {
        "file": printable(name),
        "class_id": best["class_id"],
        "class_name": best["class_name"],
        "confidence": best["probability"],
        "abstain": abstain,
        "top_k": ranked,
        "error": None,
    }


def label_set_row(name: str, ranked: list[Row], labels: list[Row], abstain: bool) -> Row:
    """A row of `SET_SCHEMA`; `ranked` and `labels`, the given labels, are most probable first."""
    return {"file": printable(name), "labels": labels, "abstain": abstain, "top_k": ranked, "error": None}


def fitting(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a part the schema of the other parts: a part in which no picture could be decoded may have the schema of the other task."""
    sound = table["error"].null_count
    return table if sound or table.schema.equals(schema) else pa.Table.from_pylist(table.select(["file", "error"]).to_pylist(), schema)


def broken_row(name: str, reason: object) -> Row:
    """A row of either schema for a picture that cannot be decoded."""
    return {"file": printable(name), "error": printable(str(reason))}

"""Prediction of a picture as a row of a table."""

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
"""A row per picture; `error` is empty for a prediction, and all but `file` and `error` are empty for an error."""

Row = dict[str, Any]


class Classifier(Protocol):
    """Classifies picture files."""

    def __call__(self, names: Sequence[str]) -> pa.Table:
        """Rows of `SCHEMA`, in the order of `names`. A picture that cannot be decoded gives a row with an error."""


def sound_row(name: str, ranked: list[Row], abstain: bool) -> Row:
    """A row of `SCHEMA` with a prediction; `ranked` contains its classes, most likely first."""
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


def broken_row(name: str, reason: object) -> Row:
    """A row of `SCHEMA` for a picture that cannot be decoded."""
    return {"file": printable(name), "error": printable(str(reason))}

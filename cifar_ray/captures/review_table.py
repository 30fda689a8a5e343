"""The pictures that people labelled, as a table that `train` reads."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from datetime import datetime

from cifar_ray.captures.capture_files import Captures
from cifar_ray.captures.reviews import Review, Reviews

# Percentage of the labelled pictures that are never trained on: they test whether the next version is better.
HELD_OUT_PERCENT = 20


def labelled(captures: Captures, reviews: Reviews, *, several_labels: bool = False, until: datetime | None = None) -> list[Review]:
    """List the decisions that count, each with its picture; decisions whose picture is gone are left out.

    Args:
        captures: the captured pictures.
        reviews: the decisions.
        several_labels: whether a picture may have any number of labels; if not, decisions without a class are left out, too.
        until: leave out later decisions, and pictures that were written later.
    """
    found = []
    for key, review in reviews.current(with_pictures=True, until=until).items():
        if not (review.label or several_labels):
            continue
        if review.picture:
            found.append(review)
        elif capture := captures.find(key, until):  # feedback may have come before the picture was written
            found.append(review.with_picture(capture))
    return found


def is_held_out(review: Review) -> bool:
    """Whether a picture is held out from training, to compare versions; the answer for a picture never changes."""
    return zlib.crc32(review.key.encode()) % 100 < HELD_OUT_PERCENT


def as_parquet(reviews: Iterable[Review], *, several_labels: bool = False) -> bytes:
    """A table with the columns `image`, `label`, `key`, `by`, `at` and `predicted`; `label` is a list with `several_labels`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "image": {"bytes": review.content, "path": f"{review.key}"},
            "label": [part.strip() for part in review.label.split(",") if part.strip()] if several_labels else review.label,
            "key": review.key,
            "by": review.by,
            "at": review.at,
            "predicted": review.predicted,
        }
        for review in reviews
    ]
    label = pa.list_(pa.string()) if several_labels else pa.string()
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", label),
            ("key", pa.string()),
            ("by", pa.string()),
            ("at", pa.timestamp("ms", tz="UTC")),
            ("predicted", pa.string()),
        ]
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()

"""History of a run, one entry per epoch, as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from cifar_ray.training.records.results import EpochReport


def to_csv(history: Sequence[EpochReport]) -> bytes:
    """CSV of at least one epoch, with one row per epoch and the columns of `EpochReport.figures()`; a missing value is empty."""
    table = io.StringIO()
    columns = list(history[0].figures())
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.figures() for report in history)
    return table.getvalue().encode()


def to_json(history: Sequence[EpochReport]) -> bytes:
    """JSON list with an object per epoch."""
    return json.dumps([report.figures() for report in history], indent=2).encode()

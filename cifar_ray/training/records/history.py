"""What happened in a run, epoch by epoch, as table, JSON and picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence

from cifar_ray.training.records.results import EpochReport


def to_csv(history: Sequence[EpochReport]) -> bytes:
    """A row an epoch, columns named like `EpochReport.figures()`; empty where there is no value."""
    table = io.StringIO()
    columns = [field.name for field in dataclasses.fields(EpochReport) if field.name != "val_confusion"]
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.figures() for report in history)
    return table.getvalue().encode()


def to_json(history: Sequence[EpochReport]) -> bytes:
    """The same as a list of objects."""
    return json.dumps([report.figures() for report in history], indent=2).encode()

"""What happened in a run, epoch by epoch, as table, JSON and picture."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence

from cifar_ray.training.loop import EpochReport


def to_csv(history: Sequence[EpochReport]) -> bytes:
    """A row an epoch, columns named like the fields of `EpochReport`; empty where there is no value."""
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in dataclasses.fields(EpochReport)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(report) for report in history)
    return table.getvalue().encode()


def to_json(history: Sequence[EpochReport]) -> bytes:
    """The same as a list of objects."""
    return json.dumps([dataclasses.asdict(report) for report in history], indent=2).encode()


def to_png(history: Sequence[EpochReport], title: str) -> bytes:
    """Curves of loss and accuracy over epochs."""
    from matplotlib.figure import Figure  # takes half a second, and only this needs it

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    epochs = [report.epoch for report in history]
    marker = "o" if len(epochs) < 30 else None
    for axes, quantity, scale, unit in zip(figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("nats", "%"), strict=True):
        for split, label in (("train", "training, as optimised"), ("val", "validation")):
            points = [(report.epoch, getattr(report, f"{split}_{quantity}")) for report in history]
            known = [(epoch, value * scale) for epoch, value in points if value is not None]
            if known:
                axes.plot(*zip(*known, strict=True), marker=marker, label=label)
        axes.set(xlabel="epoch", ylabel=f"{quantity} ({unit})")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()

"""Near-duplicates of training images in a report."""

from __future__ import annotations

from typing import Any

from cifar_ray.evaluation.model_evaluation import Leakage
from cifar_ray.evaluation.selection import Selected
from cifar_ray.reports.contact_sheet import Cell, sheet
from cifar_ray.reports.renderer import Table

SHOWN_DUPLICATES = 40


def duplicates_picture(leakage: Leakage | None, data: Selected) -> bytes | None:
    """The most similar pairs side by side, as PNG; `None` if there are none."""
    images, train = data.images, data.train
    if leakage is None or train is None or not leakage.duplicates:
        return None
    return sheet(
        [
            Cell(
                (images.images[one.query], train.images[one.reference]),
                (f"{one.similarity:.2f}{' mirrored' if one.mirrored else ''}", images.name_of(one.query), train.name_of(one.reference)),
            )
            for one in leakage.duplicates[:SHOWN_DUPLICATES]
        ],
        columns=5,
    )


def pair_table(figures: dict[str, Any]) -> list[Table]:
    """All pairs, not only those in the picture."""
    pairs = figures["leakage"]["pairs"]
    rows = [(one["image"], one["other"], one["class"], one["other_class"], f"{one['similarity']:.3f}") for one in pairs]
    return [Table(("image", "training image", "class", "its class", "similarity"), rows)] if rows else []

"""A comparison of two models as files: figures as JSON, pictures, and a page with the pictures inside."""

from __future__ import annotations

import json

import numpy as np

from cifar_ray.evaluation.comparison import AnyComparison, ModelComparison, format_p_value, summarize, to_json
from cifar_ray.evaluation.label_set_comparison import LabelSetComparison
from cifar_ray.metrics.intervals import SIGNIFICANT
from cifar_ray.reports import plots
from cifar_ray.reports.canvas import isolated
from cifar_ray.reports.contact_sheet import Cell, sheet
from cifar_ray.reports.renderer import Picture, Section, Table, render

_SHOWN = 20


def to_files(comparison: AnyComparison) -> dict[str, bytes]:
    """`comparison.json`, the pictures, and `comparison.html` with all pictures inside, by file name."""
    figures, names = to_json(comparison), comparison.a.predictor.manifest.class_names
    differences = [(one["difference"] or 0.0, one["p_value"] < SIGNIFICANT) for one in figures["classes"]]
    of_sets = isinstance(comparison, LabelSetComparison)
    figure, test = ("average precision", "jackknife over the images") if of_sets else ("recall", "McNemar's test")
    pictures = {
        "classes": Picture(
            plots.class_differences(differences, names, (comparison.a.reference, comparison.b.reference), figure),
            f"Difference in {figure}. Orange: significant ({test}, Holm-adjusted p < 0.05).",
        )
    }
    for winner, file in enumerate(("only_first_right", "only_second_right")):
        if not isinstance(comparison, LabelSetComparison) and (picture := _disagreements(comparison, winner)) is not None:
            caption = "True class, prediction of each model with its probability, image. Most confident mistakes first"
            pictures[file] = Picture(picture, f"{caption}, at most {_SHOWN}.")
    classes = [
        (
            one["name"],
            f"{one['images']:,}",
            "–" if one["difference"] is None else f"{100 * one['difference']:+.2f}",
            format_p_value(one["p_value"]),
        )
        for one in figures["classes"]
    ]
    sections = [
        Section("Summary", [Table((), summarize(figures))]),
        Section("Classes", [pictures["classes"], Table(("class", "images", "difference (points)", "p-value"), classes)]),
        *(
            Section(title, [pictures[file]] if file in pictures else ["None."])
            for file, title in (
                ("only_first_right", f"Only {comparison.a.reference} is correct"),
                ("only_second_right", f"Only {comparison.b.reference} is correct"),
            )
            if not of_sets
        ),
    ]
    title = f"{comparison.a.reference} compared with {comparison.b.reference}"
    page = render(title, f"on {comparison.a.data.name} ({comparison.a.data.split})", sections)
    files = {f"{name}.png": picture.png for name, picture in pictures.items()}
    return {"comparison.json": json.dumps(figures, indent=1, ensure_ascii=False).encode(), **files, "comparison.html": page}


def _disagreements(comparison: ModelComparison, winner: int) -> bytes | None:
    images, names = comparison.a.data.images, comparison.a.predictor.manifest.class_names
    correct = comparison.predicted == comparison.labels
    rows = np.flatnonzero(correct[winner] & ~correct[1 - winner])
    rows = rows[np.argsort(-comparison.probabilities[1 - winner, rows].max(axis=1), kind="stable")[:_SHOWN]]
    if not len(rows):
        return None
    return sheet([Cell((images.images[row],), _caption(comparison, int(row), names)) for row in rows], columns=5, side_px=150)


def _caption(comparison: ModelComparison, row: int, names: tuple[str, ...]) -> tuple[str, ...]:
    images, both = comparison.a.data.images, comparison.probabilities[:, row]
    return (names[images.labels[row]], *(f"{isolated(names[one.argmax()])} {100 * one.max():.1f} %" for one in both), images.name_of(row))

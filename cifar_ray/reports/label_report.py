"""Suspicious labels as files: a table, and a page on which a person decides and downloads the decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic_core import to_json

from cifar_ray.evaluation.label_check.check import CheckedLabels
from cifar_ray.evaluation.label_check.corrections import KEEP, REMOVE, suspects_table
from cifar_ray.evaluation.label_check.suspects import Suspect
from cifar_ray.reports.renderer import template
from cifar_ray.store.gallery import thumbnail

PAGE, TABLE, FIGURES = "check_labels.html", "suspects.csv", "check_labels.json"

_MOST_NAMED = 3  # pairs of classes in the terminal
_MAX_SHOWN = 1000
_SIDE_PX = 160
_WORDS = {
    "duplicate": ("near-duplicate with another label", "near-duplicates with another label"),
    "label": ("label that is probably wrong", "labels that are probably wrong"),
    "unlike": ("picture unlike its class", "pictures unlike their class"),
}


def to_files(checked: CheckedLabels, command: str) -> dict[str, bytes]:
    """`suspects.csv`, `check_labels.json`, and `check_labels.html` with thumbnails of the first 1,000 suspects, by file name.

    Args:
        checked: the labels and what is suspicious.
        command: command that applies decisions; empty if the pictures are not files, so that there is nothing to decide.
    """
    figures = to_json(summary(checked), indent=1)
    return {TABLE: suspects_table(checked.pictures, checked.suspects), FIGURES: figures, PAGE: _page(checked, command)}


def summary(checked: CheckedLabels) -> dict[str, Any]:
    """Figures by name: number of pictures, accuracy of the cross-validation, and number of suspects by reason."""
    counts = {reason: sum(one.reason == reason for one in checked.suspects) for reason in _WORDS}
    pictures = checked.pictures
    return {
        "format_version": 1,
        "name": pictures.splits.name,
        "images": len(pictures),
        "classes": len(pictures.class_names),
        "cross_validated_accuracy": checked.accuracy,
        "suspects": counts,
        "pairs": _pairs(checked),
    }


def describe(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary as pairs of name and text.

    Args:
        figures: from `summary`.
    """
    images, accuracy = figures["images"], 100 * figures["cross_validated_accuracy"]
    rows = [("checked", f"{images:,} labels of {figures['name']}; cross-validation predicts {accuracy:.1f} % of them")]
    for reason, count in figures["suspects"].items():
        if count:
            rows.append(("found", f"{count:,} {_WORDS[reason][count > 1]} ({100 * count / images:.1f} %)"))
    if figures["pairs"]:
        rows.append(("most", ", ".join(f"{one['label']} → {one['suggested']} {one['count']:,}" for one in figures["pairs"][:_MOST_NAMED])))
    return rows if len(rows) > 1 else [*rows, ("found", "nothing suspicious")]


def _pairs(checked: CheckedLabels) -> list[dict[str, Any]]:
    """The pairs of classes that are mistaken for each other, the most frequent first."""
    names, labels = checked.pictures.class_names, checked.pictures.labels
    wrong = [(int(labels[one.row]), one.suggested) for one in checked.suspects if one.reason == "label"]
    if not wrong:
        return []
    pairs, counts = np.unique(np.array(wrong), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:20]
    return [{"label": names[pairs[i][0]], "suggested": names[pairs[i][1]], "count": int(counts[i])} for i in order.tolist()]


def _page(checked: CheckedLabels, command: str) -> bytes:
    figures = summary(checked)
    shown = checked.suspects[:_MAX_SHOWN]
    return (
        template("label_check.html.j2")
        .render(
            command=command,
            title=f"Labels of {figures['name']}",
            lead=f"{len(checked.suspects):,} of {figures['images']:,} pictures to look at, the most suspicious first",
            rows=describe(figures),
            pairs=figures["pairs"],
            cards=[_card(checked, one) for one in shown],
            left_out=len(checked.suspects) - len(shown),
            class_names=checked.pictures.class_names,
            keep=KEEP,
            remove=REMOVE,
            small=checked.pictures.splits.train.image_size_px < _SIDE_PX,
        )
        .encode()
    )


def _card(checked: CheckedLabels, one: Suspect) -> dict[str, Any]:
    pictures = checked.pictures
    names = pictures.class_names
    rows = [one.row] if one.other is None else [one.row, one.other]
    return {
        "image": pictures.name_of(one.row),
        "label": names[pictures.labels[one.row]],
        "suggested": names[one.suggested],
        "reason": one.reason,
        "own": f"{100 * one.own_probability:.0f}\u00a0%",
        "better": f"{100 * one.suggested_probability:.0f}\u00a0%",
        "other": None if one.other is None else pictures.name_of(one.other),
        "pictures": [thumbnail(pictures.image(row), _SIDE_PX) for row in rows],
    }

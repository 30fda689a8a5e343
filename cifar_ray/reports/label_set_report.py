"""An evaluation of a model with several labels per picture as files: figures as JSON, pictures, and a page."""

from __future__ import annotations

from typing import Any

from cifar_ray.evaluation.figure_parts import percent
from cifar_ray.evaluation.label_set_evaluation import LabelSetEvaluation, summarize, to_json
from cifar_ray.inference.explain import grad_cam
from cifar_ray.inference.predictor import Predictor
from cifar_ray.reports import plots
from cifar_ray.reports.canvas import isolated
from cifar_ray.reports.model_page import duplicates_picture, evaluation_files, heat_sheet, leakage_sections, render_about
from cifar_ray.reports.renderer import Picture, Section, Table

_PER_CLASS = 3  # mistakes of each kind
_SHOWN_MISTAKES = 60


def to_files(evaluation: LabelSetEvaluation, predictor: Predictor) -> dict[str, bytes]:
    """`evaluation.json`, the pictures, and `report.html` with all pictures inside, by file name."""
    figures = to_json(evaluation)
    pictures = _pictures(evaluation, predictor)
    return evaluation_files(figures, pictures, _page(evaluation, figures, pictures))


def _pictures(evaluation: LabelSetEvaluation, predictor: Predictor) -> dict[str, Picture]:
    names, figures = evaluation.manifest.class_names, evaluation.figures
    series = {
        "precision": figures.per_class_precision(),
        "recall": figures.per_class_recall(),
        "F1": figures.per_class_f1(),
        "average precision": figures.average_precision,
    }
    found = {
        "classes": Picture(plots.per_class(series, names), "Precision, recall and F1 score at the thresholds, and average precision."),
        "co_occurrence": Picture(
            plots.co_occurrence(figures.co_occurrence, names), "Of the images with the label of the row, the share with that of the column."
        ),
        "calibration": Picture(
            plots.reliability(evaluation.calibration, evaluation.uncalibrated, of="labels", fitted="calibration"),
            "How often a label is true, by its probability; all pairs of image and label.",
        ),
    }
    if (mistakes := _mistakes(evaluation, predictor)) is not None:
        found["mistakes"] = Picture(
            mistakes, "By class, most confident first. Right: the pixels that support the label (Grad-CAM). Third line: the true labels."
        )
    found |= duplicates_picture(evaluation.leakage, evaluation.data)
    return found


def _mistakes(evaluation: LabelSetEvaluation, predictor: Predictor) -> bytes | None:
    images, names = evaluation.data.images, evaluation.manifest.class_names
    shown = [
        (int(row), label, given)
        for label in range(len(names))
        for given in (True, False)
        for row in evaluation.mistakes(label, _PER_CLASS, given=given)
    ][:_SHOWN_MISTAKES]
    if not shown:
        return None
    pixels = images.images[[row for row, _, _ in shown]]
    heat = grad_cam(predictor.network, predictor.manifest, pixels, [label for _, label, _ in shown])
    captions = [
        (
            f"{'wrongly' if given else 'missing'} {isolated(names[label])} {100 * evaluation.probabilities[row, label]:.1f} %",
            images.name_of(row),
            images.label_of(row),
        )
        for row, label, given in shown
    ]
    return heat_sheet(pixels, heat, captions)


def _page(evaluation: LabelSetEvaluation, figures: dict[str, Any], pictures: dict[str, Picture]) -> bytes:
    shown = {name: [picture] for name, picture in pictures.items()}
    sections = [
        Section("Summary", [Table((), summarize(figures))]),
        Section("Classes", [*shown["classes"], _class_table(figures)]),
        Section("Labels that occur together", shown["co_occurrence"]),
        Section("Calibration", shown["calibration"]),
        Section("Most confident mistakes by class", shown.get("mistakes", ["None: all labels are correct."])),
    ]
    sections += leakage_sections(figures, shown)
    return render_about(evaluation, sections)


def _class_table(figures: dict[str, Any]) -> Table:
    keys = ("average_precision", "precision", "recall", "f1")
    rows = [
        (one["name"], f"{one['images']:,}", f"{one['given']:,}", f"{one['threshold']:.3f}", *(percent(one[key]) for key in keys))
        for one in figures["classes"]
    ]
    return Table(("class", "images", "given", "threshold", "average precision", "precision", "recall", "F1"), rows)

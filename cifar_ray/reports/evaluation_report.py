"""An evaluation as files: figures as JSON, pictures, and a page with the pictures inside."""

from __future__ import annotations

from typing import Any

from cifar_ray.evaluation.figure_parts import percent
from cifar_ray.evaluation.figures import AnyEvaluation, summarize, to_json
from cifar_ray.evaluation.label_set_evaluation import LabelSetEvaluation
from cifar_ray.evaluation.model_evaluation import ModelEvaluation, most_confident_mistakes
from cifar_ray.inference.explain import grad_cam
from cifar_ray.inference.predictor import Predictor
from cifar_ray.reports import label_set_report, plots
from cifar_ray.reports.canvas import isolated
from cifar_ray.reports.model_page import duplicates_picture, evaluation_files, heat_sheet, leakage_sections, render_about
from cifar_ray.reports.renderer import Picture, Section, Table

_SHOWN_MISTAKES = 24


def to_files(evaluation: AnyEvaluation, predictor: Predictor) -> dict[str, bytes]:
    """`evaluation.json`, the pictures, and `report.html` with all pictures inside, by file name."""
    if isinstance(evaluation, LabelSetEvaluation):
        return label_set_report.to_files(evaluation, predictor)
    figures = to_json(evaluation)
    pictures = _pictures(evaluation, predictor)
    return evaluation_files(figures, pictures, _page(evaluation, figures, pictures))


def _pictures(evaluation: ModelEvaluation, predictor: Predictor) -> dict[str, Picture]:
    names, figures = evaluation.manifest.class_names, evaluation.figures
    series = {"precision": figures.per_class_precision(), "recall": figures.per_class_accuracy(), "F1": figures.per_class_f1()}
    found = {
        "confusion": Picture(plots.confusion(figures, names), "Rows: true classes. Columns: predicted classes."),
        "classes": Picture(plots.per_class(series, names), "Precision, recall and F1 score of each class."),
        "bias": Picture(
            plots.bias(evaluation.bias, names),
            "How much more often each class is predicted than it occurs. Orange: significant (sign test, Holm-adjusted p < 0.05).",
        ),
        "calibration": Picture(
            plots.reliability(evaluation.calibration, evaluation.uncalibrated), "Accuracy of the predictions by their confidence."
        ),
        "slices": Picture(plots.slices(evaluation.slices, figures.accuracy), "Accuracy on slices of the images, with 95 % intervals."),
    }
    if evaluation.robustness is not None:
        count, clean = evaluation.robustness.count, evaluation.robustness.clean_correct / evaluation.robustness.count
        caption = f"Accuracy (%) on {count:,} images by type and severity of corruption."
        found["robustness"] = Picture(plots.robustness(evaluation.robustness.correct, count, clean), caption)
    if (mistakes := _mistakes(evaluation, predictor)) is not None:
        found["mistakes"] = Picture(
            mistakes, "True class → predicted class with its probability. Right: the pixels that support the prediction (Grad-CAM)."
        )
    found |= duplicates_picture(evaluation.leakage, evaluation.data)
    return found


def _mistakes(evaluation: ModelEvaluation, predictor: Predictor) -> bytes | None:
    rows = most_confident_mistakes(evaluation, _SHOWN_MISTAKES)
    if not len(rows):
        return None
    images, predicted, names = evaluation.data.images, evaluation.predicted, evaluation.manifest.class_names
    heat = grad_cam(predictor.network, predictor.manifest, images.images[rows], predicted[rows])
    captions = [
        (
            f"{isolated(names[images.labels[row]])} → {isolated(names[predicted[row]])} {100 * evaluation.probabilities[row].max():.1f} %",
            images.name_of(int(row)),
        )
        for row in rows
    ]
    return heat_sheet(images.images[rows], heat, captions)


def _page(evaluation: ModelEvaluation, figures: dict[str, Any], pictures: dict[str, Picture]) -> bytes:
    shown = {name: [picture] for name, picture in pictures.items()}
    sections = [
        Section("Summary", [Table((), summarize(figures))]),
        Section("Classes", [*shown["classes"], _class_table(figures)]),
        Section("Confusion matrix", shown["confusion"]),
        Section("Prediction bias", [figures["prediction_bias"]["verdict"], *shown["bias"]]),
        Section("Calibration", shown["calibration"]),
        Section("Most confident mistakes", shown.get("mistakes", ["None: all predictions are correct."])),
        Section("Slices", shown["slices"]),
    ]
    if "robustness" in shown:
        sections.append(Section("Robustness", shown["robustness"]))
    sections += leakage_sections(figures, shown)
    return render_about(evaluation, sections)


def _class_table(figures: dict[str, Any]) -> Table:
    rows = [
        (one["name"], f"{one['images']:,}", f"{one['predicted']:,}", *(percent(one[key]) for key in ("precision", "recall", "f1")))
        for one in figures["classes"]
    ]
    return Table(("class", "images", "predicted", "precision", "recall", "F1"), rows)

"""An evaluation as files: figures as JSON, pictures, and a page with the pictures inside."""

from __future__ import annotations

import json
from typing import Any

from cifar_ray.evaluation.figures import percent, summarize, to_json
from cifar_ray.evaluation.model_evaluation import ModelEvaluation, most_confident_mistakes
from cifar_ray.inference.explain import grad_cam
from cifar_ray.inference.overlay import overlay
from cifar_ray.inference.predictor import Predictor
from cifar_ray.reports import plots
from cifar_ray.reports.contact_sheet import Cell, sheet
from cifar_ray.reports.renderer import Picture, Section, Table, render

_SHOWN_MISTAKES = 24
_SHOWN_DUPLICATES = 40


def to_files(evaluation: ModelEvaluation, predictor: Predictor) -> dict[str, bytes]:
    """`evaluation.json`, the pictures, and `report.html` with all pictures inside, by file name."""
    figures = to_json(evaluation)
    pictures = _pictures(evaluation, predictor)
    files = {f"{name}.png": picture.png for name, picture in pictures.items()}
    page = _page(evaluation, figures, pictures)
    return {"evaluation.json": json.dumps(figures, indent=1, ensure_ascii=False).encode(), **files, "report.html": page}


def _pictures(evaluation: ModelEvaluation, predictor: Predictor) -> dict[str, Picture]:
    names, figures = evaluation.manifest.class_names, evaluation.figures
    found = {
        "confusion": Picture(plots.confusion(figures, names), "Rows: true classes. Columns: predicted classes."),
        "classes": Picture(plots.per_class(figures, names), "Precision, recall and F1 score of each class."),
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
    if (duplicates := _duplicates(evaluation)) is not None:
        found["duplicates"] = Picture(duplicates, f"Left: image. Right: training image. Most similar first, at most {_SHOWN_DUPLICATES}.")
    return found


def _mistakes(evaluation: ModelEvaluation, predictor: Predictor) -> bytes | None:
    rows = most_confident_mistakes(evaluation, _SHOWN_MISTAKES)
    if not len(rows):
        return None
    images, predicted, names = evaluation.data.images, evaluation.predicted, evaluation.manifest.class_names
    heat = grad_cam(predictor.network, predictor.manifest, images.images[rows], predicted[rows])
    return sheet(
        [
            Cell(
                (images.images[row], overlay(images.images[row], heatmap, side_px=96)),
                (
                    f"{names[images.labels[row]]} → {names[predicted[row]]} {evaluation.probabilities[row].max():.1%}",
                    images.name_of(int(row)),
                ),
            )
            for row, heatmap in zip(rows, heat, strict=True)
        ],
        columns=5,
    )


def _duplicates(evaluation: ModelEvaluation) -> bytes | None:
    leakage, images, train = evaluation.leakage, evaluation.data.images, evaluation.data.train
    if leakage is None or train is None or not leakage.duplicates:
        return None
    return sheet(
        [
            Cell(
                (images.images[one.query], train.images[one.reference]),
                (f"{one.similarity:.2f}{' mirrored' if one.mirrored else ''}", images.name_of(one.query), train.name_of(one.reference)),
            )
            for one in leakage.duplicates[:_SHOWN_DUPLICATES]
        ],
        columns=5,
    )


def _page(evaluation: ModelEvaluation, figures: dict[str, Any], pictures: dict[str, Picture]) -> bytes:
    data, manifest = evaluation.data, evaluation.manifest
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
    if figures["leakage"] is not None:
        duplicates = shown.get("duplicates", ["No image is a near-duplicate of a training image."])
        sections.append(Section("Leakage: near-duplicates of training images", [*duplicates, *_pair_table(figures)]))
    trained = f"{manifest.architecture.name}, trained on {manifest.dataset_name}"
    return render(f"{evaluation.reference} on {data.name} ({data.split})", f"{trained}; weights {manifest.weights_sha256[:12]}", sections)


def _class_table(figures: dict[str, Any]) -> Table:
    rows = [
        (one["name"], f"{one['images']:,}", f"{one['predicted']:,}", *(percent(one[key]) for key in ("precision", "recall", "f1")))
        for one in figures["classes"]
    ]
    return Table(("class", "images", "predicted", "precision", "recall", "F1"), rows)


def _pair_table(figures: dict[str, Any]) -> list[Table]:
    """All pairs, not only those in the picture."""
    pairs = figures["leakage"]["pairs"]
    rows = [(one["image"], one["other"], one["class"], one["other_class"], f"{one['similarity']:.3f}") for one in pairs]
    return [Table(("image", "training image", "class", "its class", "similarity"), rows)] if rows else []

"""All figures of an evaluation as JSON, and the summary table."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from cifar_ray.evaluation.corruptions import CORRUPTIONS
from cifar_ray.evaluation.leakage import describe_duplicate
from cifar_ray.evaluation.model_evaluation import ModelEvaluation, without_duplicates
from cifar_ray.metrics.accuracy import Evaluation, count_top_k
from cifar_ray.metrics.intervals import accuracy_interval

FORMAT_VERSION = 1

_TOP = 5
# A significant bias is called strong if a class is predicted this much more or less often than it occurs.
_STRONG_EXCESS = 0.25


def to_json(evaluation: ModelEvaluation) -> dict[str, Any]:
    """All figures by name; shares are 0–1, unknown values are null."""
    data, names = evaluation.data, evaluation.manifest.class_names
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": evaluation.reference,
        "weights_sha256": evaluation.manifest.weights_sha256,
        "data": {
            "name": data.name,
            "split": data.split,
            "images": len(data.images),
            "fingerprint": data.images.fingerprint,
            "the_images_that_training_reported_on": data.as_trained,
        },
        **_accuracy(evaluation.figures),
        "top_5_accuracy": count_top_k(evaluation.logits, data.images.labels, _TOP) / len(data.images) if len(names) > _TOP else None,
        "loss": evaluation.figures.loss,
        "calibration": {
            "expected_calibration_error": evaluation.calibration.error,
            "overconfidence": evaluation.calibration.overconfidence,
            "temperature": evaluation.manifest.temperature,
            "expected_calibration_error_without_it": evaluation.uncalibrated.error,
        },
        "abstaining": _abstaining(evaluation),
        "prediction_bias": {"verdict": bias_verdict(evaluation)},
        "classes": _classes(evaluation),
        "confusion": evaluation.figures.confusion.tolist(),
        "slices": {
            name: [{**asdict(part), "accuracy": part.accuracy, "interval": part.interval} for part in parts]
            for name, parts in evaluation.slices.items()
        },
        "cost": asdict(evaluation.cost),
        "robustness": _robustness(evaluation),
        "leakage": _leakage(evaluation),
    }
    result: dict[str, Any] = _without_nan(found)
    return result


def summarize(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary table, name and text of each row.

    Args:
        figures: from `to_json`.
    """
    low, high = figures["accuracy_interval"]
    data, cost = figures["data"], figures["cost"]
    worst = min(figures["classes"], key=lambda one: one["f1"] if one["f1"] is not None else 2)
    rows = [
        ("images", f"{data['images']:,} {data['split']} images of {data['name']}{_provenance(data)}"),
        ("accuracy", f"{figures['accuracy']:.2%} (95 % interval {low:.2%}–{high:.2%})"),
        ("over classes", f"balanced accuracy {figures['balanced_accuracy']:.2%}, macro-F1 {figures['macro_f1']:.2%}"),
        ("top 5", None if figures["top_5_accuracy"] is None else f"{figures['top_5_accuracy']:.2%}"),
        ("loss", f"{figures['loss']:.4f}"),
        (
            "worst class",
            f"{worst['name']}: precision {percent(worst['precision'])}, recall {percent(worst['recall'])}, F1 {percent(worst['f1'])}",
        ),
        ("bias", figures["prediction_bias"]["verdict"]),
        ("calibration", _calibration_line(figures["calibration"])),
        ("abstains", _abstaining_line(figures["abstaining"])),
        ("robustness", _robustness_line(figures["robustness"])),
        ("leakage", _leakage_line(figures["leakage"])),
        ("cost", f"{cost['parameters']:,} parameters, {cost['flops'] / 1e6:,.1f} MFLOPs per image, {cost['weight_bytes'] / 1e6:.1f} MB"),
        (
            "speed",
            f"{cost['latency_ms']:.2f} ms for one image, {cost['images_per_s']:,.0f} images/s in batches "
            f"({cost['engine']}, {cost['precision']}, {cost['threads']} threads)",
        ),
    ]
    return [(name, text) for name, text in rows if text is not None]


def bias_verdict(evaluation: ModelEvaluation) -> str:
    """One line about the classes that are predicted significantly more or less often than they occur."""
    named = [(name, one) for name, one in zip(evaluation.manifest.class_names, evaluation.bias, strict=True) if one.significant]
    if not named:
        return "none: no class is predicted significantly more or less often than it occurs"
    excess = {name: (one.predicted - one.occurs) / max(1, one.occurs) for name, one in named}
    strength = "strong" if max(map(abs, excess.values())) > _STRONG_EXCESS else "slight"
    ordered = sorted(excess.items(), key=lambda item: -abs(item[1]))
    listed = ", ".join(f"{name} {value:+.1%}" for name, value in ordered[:5])
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return f"{strength}: predicted more (+) or less (-) often than they occur: {listed}{more}"


def _accuracy(figures: Evaluation) -> dict[str, Any]:
    interval = accuracy_interval(figures.correct, figures.count)
    return {
        "accuracy": figures.accuracy,
        "accuracy_interval": interval,
        "correct": figures.correct,
        "balanced_accuracy": figures.balanced_accuracy,
        "macro_f1": figures.macro_f1,
    }


def _classes(evaluation: ModelEvaluation) -> list[dict[str, Any]]:
    figures = evaluation.figures
    columns = (figures.per_class_precision(), figures.per_class_accuracy(), figures.per_class_f1())
    return [
        {"name": name, "images": one.occurs, "predicted": one.predicted, "bias_p_value": one.p_value}
        | dict(zip(("precision", "recall", "f1"), map(float, values), strict=True))
        for name, one, *values in zip(evaluation.manifest.class_names, evaluation.bias, *columns, strict=True)
    ]


def _abstaining(evaluation: ModelEvaluation) -> dict[str, Any] | None:
    if evaluation.manifest.abstain_threshold is None:
        return None
    answered = evaluation.correct[~evaluation.abstains]
    return {
        "threshold": evaluation.manifest.abstain_threshold,
        "share": float(evaluation.abstains.mean()),
        "accuracy_of_the_rest": float(answered.mean()) if len(answered) else None,
    }


def _robustness(evaluation: ModelEvaluation) -> dict[str, Any] | None:
    robustness = evaluation.robustness
    if robustness is None:
        return None
    return {
        "images": robustness.count,
        "clean_accuracy": robustness.clean_correct / robustness.count,
        "mean_accuracy": robustness.mean_accuracy,
        "accuracy_by_level": {
            name: (levels / robustness.count).tolist() for name, levels in zip(CORRUPTIONS, robustness.correct, strict=True)
        },
    }


def _leakage(evaluation: ModelEvaluation) -> dict[str, Any] | None:
    leakage, rest, train = evaluation.leakage, without_duplicates(evaluation), evaluation.data.train
    if leakage is None or rest is None or train is None:
        return None
    images = evaluation.data.images
    return {
        "training_images_searched": leakage.searched,
        "duplicates": len(leakage.duplicates),
        "share": len(leakage.duplicates) / len(images),
        "seconds": leakage.seconds,
        "without_duplicates": _accuracy(rest),
        "accuracy_on_duplicates": float(evaluation.correct[~leakage.kept].mean()) if leakage.duplicates else None,
        "pairs": [describe_duplicate(one, images, train) for one in leakage.duplicates],
    }


def _calibration_line(calibration: dict[str, Any]) -> str:
    leaning = "over" if calibration["overconfidence"] > 0 else "under"
    before, temperature = calibration["expected_calibration_error_without_it"], calibration["temperature"]
    fitted = "no temperature was fitted" if temperature == 1 else f"{before:.2%} without the temperature of {temperature:.3g}"
    return (
        f"expected calibration error {calibration['expected_calibration_error']:.2%}, "
        f"{leaning}confident by {abs(calibration['overconfidence']):.2%}; {fitted}"
    )


def _abstaining_line(abstaining: dict[str, Any] | None) -> str:
    if abstaining is None:
        return "never: the model has no abstain threshold"
    return f"on {abstaining['share']:.2%} of the images; accuracy on the rest {percent(abstaining['accuracy_of_the_rest'])}"


def _robustness_line(robustness: dict[str, Any] | None) -> str | None:
    if robustness is None:
        return None
    means = {name: sum(levels) / len(levels) for name, levels in robustness["accuracy_by_level"].items()}
    worst = min(means, key=means.__getitem__)
    return (
        f"accuracy {robustness['mean_accuracy']:.2%} on corrupted images, {robustness['clean_accuracy']:.2%} without corruption "
        f"({robustness['images']:,} images; worst corruption: {worst}, {means[worst]:.2%})"
    )


def _leakage_line(leakage: dict[str, Any] | None) -> str | None:
    if leakage is None:
        return None
    return (
        f"{leakage['duplicates']:,} ({leakage['share']:.2%}) of the images are near-duplicates of a training image; "
        f"accuracy without them {leakage['without_duplicates']['accuracy']:.2%}"
    )


def _provenance(data: dict[str, Any]) -> str:
    texts = {True: " (the test split of its training)", False: " (not the test split of its training)", None: ""}
    return texts[data["the_images_that_training_reported_on"]]


def percent(value: float | None) -> str:
    """A share as a percentage, or a dash for `None`."""
    return "–" if value is None else f"{value:.2%}"


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON lacks, with null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

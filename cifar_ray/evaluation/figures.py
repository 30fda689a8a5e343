"""All figures of an evaluation as JSON, and the summary table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cifar_ray.evaluation import label_set_evaluation
from cifar_ray.evaluation.figure_parts import (
    cost_rows,
    describe_calibration,
    describe_duplicates,
    describe_subject,
    images_row,
    percent,
    without_nan,
)
from cifar_ray.evaluation.label_set_evaluation import LabelSetEvaluation
from cifar_ray.evaluation.measures.corruptions import CORRUPTIONS
from cifar_ray.evaluation.model_evaluation import ModelEvaluation, without_duplicates
from cifar_ray.metrics.accuracy import Evaluation, count_top_k
from cifar_ray.metrics.intervals import accuracy_interval

AnyEvaluation = ModelEvaluation | LabelSetEvaluation

_TOP = 5
# A significant bias is called strong if a class is predicted this much more or less often than it occurs.
_STRONG_EXCESS = 0.25


def to_json(evaluation: AnyEvaluation) -> dict[str, Any]:
    """All figures by name; fractions are 0–1, unknown values are `None`."""
    if isinstance(evaluation, LabelSetEvaluation):
        return label_set_evaluation.to_json(evaluation)
    data, names = evaluation.data, evaluation.manifest.class_names
    found = describe_subject(evaluation.reference, evaluation.manifest, data) | {
        **_accuracy(evaluation.figures),
        "top_5_accuracy": count_top_k(evaluation.logits, data.images.labels, _TOP) / len(data.images) if len(names) > _TOP else None,
        "loss": evaluation.figures.loss,
        "calibration": {
            **describe_calibration(evaluation.calibration, evaluation.uncalibrated),
            "temperature": evaluation.manifest.temperature,
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
    result: dict[str, Any] = without_nan(found)
    return result


def summarize(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the summary table, each as `(name, text)`.

    Args:
        figures: result of `to_json`.
    """
    if "map" in figures:
        return label_set_evaluation.summarize(figures)
    low, high = figures["accuracy_interval"]
    worst = min(figures["classes"], key=lambda one: one["f1"] if one["f1"] is not None else 2)
    rows = [
        images_row(figures),
        ("accuracy", f"{100 * figures['accuracy']:.2f} % (95 % interval {100 * low:.2f}–{100 * high:.2f} %)"),
        ("over classes", f"balanced accuracy {100 * figures['balanced_accuracy']:.2f} %, macro-F1 {100 * figures['macro_f1']:.2f} %"),
        ("top 5", None if figures["top_5_accuracy"] is None else f"{100 * figures['top_5_accuracy']:.2f} %"),
        ("loss", f"{figures['loss']:.4f}"),
        (
            "worst class",
            f"{worst['name']} ({worst['images']:,} images): precision {percent(worst['precision'])}, "
            f"recall {percent(worst['recall'])}, F1 {percent(worst['f1'])}",
        ),
        ("bias", figures["prediction_bias"]["verdict"]),
        ("calibration", _calibration_line(figures["calibration"])),
        ("abstains", _abstaining_line(figures["abstaining"])),
        ("robustness", _robustness_line(figures["robustness"])),
        ("leakage", _leakage_line(figures["leakage"])),
        *cost_rows(figures),
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
    listed = ", ".join(f"{name} {100 * value:+.1f} %" for name, value in ordered[:5])
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
    leakage, rest = evaluation.leakage, without_duplicates(evaluation)
    if leakage is None or rest is None:
        return None
    return describe_duplicates(leakage, evaluation.data) | {
        "without_duplicates": _accuracy(rest),
        "accuracy_on_duplicates": float(evaluation.correct[~leakage.kept].mean()) if leakage.duplicates else None,
    }


def _calibration_line(calibration: dict[str, Any]) -> str:
    leaning = "over" if calibration["overconfidence"] > 0 else "under"
    before, temperature = calibration["expected_calibration_error_without_it"], calibration["temperature"]
    fitted = "temperature 1: no change" if temperature == 1 else f"{100 * before:.2f} % without the temperature of {temperature:.3g}"
    return (
        f"expected calibration error {100 * calibration['expected_calibration_error']:.2f} %, "
        f"{leaning}confident by {100 * abs(calibration['overconfidence']):.2f} %; {fitted}"
    )


def _abstaining_line(abstaining: dict[str, Any] | None) -> str:
    if abstaining is None:
        return "never: the model has no abstain threshold"
    return f"on {100 * abstaining['share']:.2f} % of the images; accuracy on the rest {percent(abstaining['accuracy_of_the_rest'])}"


def _robustness_line(robustness: dict[str, Any] | None) -> str | None:
    if robustness is None:
        return None
    means = {name: sum(levels) / len(levels) for name, levels in robustness["accuracy_by_level"].items()}
    worst = min(means, key=means.__getitem__)
    return (
        f"accuracy {percent(robustness['mean_accuracy'])} on corrupted images, {percent(robustness['clean_accuracy'])} without corruption "
        f"({robustness['images']:,} images; worst corruption: {worst}, {100 * means[worst]:.2f} %)"
    )


def _leakage_line(leakage: dict[str, Any] | None) -> str | None:
    if leakage is None:
        return None
    return (
        f"{leakage['duplicates']:,} ({100 * leakage['share']:.2f} %) of the images are near-duplicates of a training image; "
        f"accuracy without them {100 * leakage['without_duplicates']['accuracy']:.2f} %"
    )

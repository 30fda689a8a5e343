"""Compare two models on the same images: significance, difference per class, and the images on which they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_ray.errors import ConfigError, DataError
from cifar_ray.evaluation import label_set_comparison
from cifar_ray.evaluation.contender import Contender, verdict
from cifar_ray.evaluation.label_set_comparison import LabelSetComparison, compare_label_sets
from cifar_ray.evaluation.model_evaluation import Progress, score_here
from cifar_ray.evaluation.selection import relabel
from cifar_ray.metrics.accuracy import softmax
from cifar_ray.metrics.intervals import SIGNIFICANT, PairedComparison, accuracy_interval, holm

_SMALLEST_SHOWN_P = 0.0001


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """Predictions of two models for the same N images; classes are in the order of the first model.

    Attributes:
        a: the first model.
        b: the second model.
        probabilities: float32 `[2, N, C]`.
        overall: comparison over all images.
        by_class: comparison over the images of each class, with the p-value adjusted for the number of classes.
    """

    a: Contender
    b: Contender
    probabilities: npt.NDArray[np.float32]
    overall: PairedComparison
    by_class: list[tuple[PairedComparison, float]]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """True classes, int64 `[N]`."""
        return self.a.data.images.labels

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Most probable classes, int64 `[2, N]`."""
        predicted: npt.NDArray[np.int64] = self.probabilities.argmax(axis=2)
        return predicted

    @property
    def verdict(self) -> str:
        """Which model is better, or that the difference is not significant."""
        return verdict(self.a, self.b, self.overall.difference, self.overall.p_value)


AnyComparison = ModelComparison | LabelSetComparison


def compare_models(a: Contender, b: Contender, progress: Progress) -> AnyComparison:
    """Run both models on all images and pair their predictions.

    Raises:
        ConfigError: if the models have different classes, or tasks.
        DataError: if the models did not get the same images, for example because a file became unreadable between the two loads.
    """
    names, tasks = a.predictor.manifest.class_names, [one.predictor.manifest.task for one in (a, b)]
    if tasks[0] != tasks[1]:
        raise ConfigError(f"{a.reference} is {tasks[0]} and {b.reference} {tasks[1]}: their figures cannot be compared")
    if set(names) != set(b.predictor.manifest.class_names):
        raise ConfigError(f"{a.reference} and {b.reference} have different classes and cannot be compared: {_differing(a, b)}")
    column_of = [b.predictor.manifest.class_names.index(name) for name in names]
    labels = a.data.images.labels
    if not np.array_equal(labels, relabel(b.data.images, names, b.data.name).labels):
        raise DataError(
            f"{a.reference} and {b.reference} got different images of {a.data.name}; "
            "find unreadable files with cifar-ray stats, then compare again"
        )
    logits = _logits(a, progress), _logits(b, progress)
    if a.data.images.is_multi_label:
        return compare_label_sets(a, b, logits, column_of)
    both = [softmax(one, contender.predictor.manifest.temperature) for one, contender in zip(logits, (a, b), strict=True)]
    probabilities = np.stack([both[0], both[1][:, column_of]])
    right_a, right_b = probabilities.argmax(axis=2) == labels
    by_class = [_paired(right_a[labels == label], right_b[labels == label]) for label in range(len(names))]
    adjusted = holm([one.p_value for one in by_class])
    return ModelComparison(a, b, probabilities, _paired(right_a, right_b), list(zip(by_class, adjusted, strict=True)))


def to_json(comparison: AnyComparison) -> dict[str, Any]:
    """All figures by name; fractions are 0–1."""
    if isinstance(comparison, LabelSetComparison):
        return label_set_comparison.to_json(comparison)
    overall, names = comparison.overall, comparison.a.predictor.manifest.class_names
    right = (comparison.predicted == comparison.labels).sum(axis=1).tolist()
    return {
        "format_version": 1,
        "data": {"name": comparison.a.data.name, "split": comparison.a.data.split, "images": overall.count},
        "models": [
            {
                "model": one.reference,
                "accuracy": correct / max(1, overall.count),
                "accuracy_interval": accuracy_interval(correct, overall.count),
                "tested_on_these_images_after_training": one.data.as_trained,
            }
            for one, correct in zip((comparison.a, comparison.b), right, strict=True)
        ],
        "verdict": comparison.verdict,
        "difference": overall.difference,
        "difference_interval": overall.interval,
        "p_value": overall.p_value,
        "only_first_right": overall.only_a,
        "only_second_right": overall.only_b,
        "agreement": float((comparison.predicted[0] == comparison.predicted[1]).mean()),
        "classes": [
            {"name": name, "images": one.count, "difference": one.difference, "p_value": p_value}
            for name, (one, p_value) in zip(names, comparison.by_class, strict=True)
        ],
    }


def summarize(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the summary table, each as `(name, text)`.

    Args:
        figures: result of `to_json`.
    """
    data, (low, high) = figures["data"], figures["difference_interval"]
    rows = [("images", f"{data['images']:,} {data['split']} images of {data['name']}")]
    of_sets = figures.get("task") == "multi-label"
    rows += (
        label_set_comparison.describe_scores(figures)
        if of_sets
        else [(one["model"], f"accuracy {100 * one['accuracy']:.2f} %") for one in figures["models"]]
    )
    for one in figures["models"]:
        if one["tested_on_these_images_after_training"] is False:
            rows.append(("note", f"{one['model']} was trained with another split; it may have been trained on some of these images"))
    changed = sorted((one for one in figures["classes"] if one["p_value"] < SIGNIFICANT), key=lambda one: -abs(one["difference"]))
    of_what = "pairs of image and label get the same answer" if of_sets else "images get the same class"
    classes = ", ".join(f"{one['name']} {100 * one['difference']:+.1f} points" for one in changed)
    first, second = (one["model"] for one in figures["models"])
    return [
        *rows,
        ("difference", f"{second} {100 * figures['difference']:+.2f} points (95 % interval {100 * low:+.2f} to {100 * high:+.2f})"),
        ("test", f"jackknife over the images; p-value {format_p_value(figures['p_value'])}")
        if of_sets
        else (
            "McNemar",
            f"images that only {first} gets right: {figures['only_first_right']:,}, only {second}: "
            f"{figures['only_second_right']:,}; p-value {format_p_value(figures['p_value'])}",
        ),
        ("verdict", figures["verdict"]),
        ("classes", classes or "no significant difference in any class"),
        (
            "agreement",
            f"{100 * figures['agreement']:.2f} % of the {of_what} from both models",
        ),
    ]


def format_p_value(p_value: float) -> str:
    """Format a p-value with three digits, for example 0.0123; small values as `< 0.0001`."""
    return f"{p_value:.3g}" if p_value >= _SMALLEST_SHOWN_P else f"< {_SMALLEST_SHOWN_P}"


def _differing(a: Contender, b: Contender) -> str:
    """The classes that only one of the models has, at most five of each."""
    names_a, names_b = (set(one.predictor.manifest.class_names) for one in (a, b))
    groups = ((a.reference, sorted(names_a - names_b)), (b.reference, sorted(names_b - names_a)))
    return "; ".join(f"only {reference}: {', '.join(names[:5])}{', …' * (len(names) > 5)}" for reference, names in groups if names)


def _logits(one: Contender, progress: Progress) -> npt.NDArray[np.float32]:
    advance = progress(one.reference, len(one.data.images))
    return np.concatenate([block.logits for _, block in score_here(one.predictor, one.data.images, None, advance)])


def _paired(right_a: npt.NDArray[np.bool_], right_b: npt.NDArray[np.bool_]) -> PairedComparison:
    return PairedComparison(len(right_a), int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum()))

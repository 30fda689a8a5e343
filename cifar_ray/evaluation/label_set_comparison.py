"""Compare two models with several labels per picture on the same images: difference of the mAP, and of each class."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_ray.evaluation.contender import Contender, verdict
from cifar_ray.metrics.accuracy import Floats
from cifar_ray.metrics.intervals import holm
from cifar_ray.metrics.label_sets import average_precisions, jackknife_spread, mean_average_precision
from cifar_ray.metrics.score import Score

_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, eq=False)
class LabelSetComparison:
    """Two models on the same N images; classes are in the order of the first model.

    Attributes:
        a: the first model.
        b: the second model.
        maps: mAP of each model, 0–1.
        spread: standard error of the difference, by a jackknife over the images; it leaves out the same images for both models.
        by_class: float64 `[2, C]`, average precision; NaN for a class that does not occur.
        p_values: p-value of the difference in each class, adjusted for the number of classes (Holm 1979); 1 for a class that does not
            occur.
        agreement: fraction of the pairs of image and label for which both models give the label, or both do not.
    """

    a: Contender
    b: Contender
    maps: tuple[float, float]
    spread: float
    by_class: Floats
    p_values: list[float]
    agreement: float

    @property
    def difference(self) -> float:
        """The mAP of the second model minus the mAP of the first."""
        return self.maps[1] - self.maps[0]

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the difference."""
        return _p_value(self.difference, self.spread)


def compare_label_sets(
    a: Contender, b: Contender, logits: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], column_of: list[int]
) -> LabelSetComparison:
    """Compare the logits of two models on the same images.

    Args:
        a: the first model.
        b: the second model.
        logits: logits of both models, float32 `[N, C]` each, in the class order of each model.
        column_of: for each class of the first model, its column in the logits of the second.
    """
    labels = a.data.images.labels
    ours = (logits[0], logits[1][:, column_of])

    def differences(rows: npt.NDArray[np.bool_]) -> Floats:
        """Difference of the mAP, then of each class, on some images: float64 `[1 + C]`."""
        maps = [mean_average_precision(one[rows], labels[rows]) for one in ours]
        classes = [average_precisions(one[rows], labels[rows]) for one in ours]
        return np.append(maps[1] - maps[0], classes[1] - classes[0])

    spreads = jackknife_spread(differences, len(labels))
    by_class = np.stack([average_precisions(one, labels) for one in ours])
    given: list[npt.NDArray[np.bool_]] = []
    for one, columns in ((a, slice(None)), (b, column_of)):
        rules = one.predictor.manifest.rules
        assert rules is not None  # noqa: S101
        given.append(rules.labels(rules.probabilities(logits[len(given)]))[:, columns])
    return LabelSetComparison(
        a,
        b,
        (mean_average_precision(ours[0], labels), mean_average_precision(ours[1], labels)),
        float(spreads[0]),
        by_class,
        holm([_p_value(*pair) for pair in zip((by_class[1] - by_class[0]).tolist(), spreads[1:].tolist(), strict=True)]),
        float((given[0] == given[1]).mean()),
    )


def to_json(comparison: LabelSetComparison) -> dict[str, Any]:
    """All figures by name; fractions are 0–1."""
    a, images = comparison.a, comparison.a.data.images
    reach = _Z95 * comparison.spread
    counts = images.class_counts().tolist()
    differences = (comparison.by_class[1] - comparison.by_class[0]).tolist()
    return {
        "format_version": 1,
        "task": "multi-label",
        "data": {"name": a.data.name, "split": a.data.split, "images": len(images)},
        "models": [
            {"model": one.reference, "map": value, "tested_on_these_images_after_training": one.data.as_trained}
            for one, value in zip((a, comparison.b), comparison.maps, strict=True)
        ],
        "verdict": verdict(a, comparison.b, comparison.difference, comparison.p_value),
        "difference": comparison.difference,
        "difference_interval": (comparison.difference - reach, comparison.difference + reach),
        "p_value": comparison.p_value,
        "agreement": comparison.agreement,
        "classes": [
            {"name": name, "images": count, "difference": difference if count else None, "p_value": p_value}
            for name, count, difference, p_value in zip(
                a.predictor.manifest.class_names, counts, differences, comparison.p_values, strict=True
            )
        ],
    }


def describe_scores(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the summary table: the score of each model.

    Args:
        figures: result of `to_json`.
    """
    return [(one["model"], f"mAP {Score('map', one['map'])}") for one in figures["models"]]


def _p_value(difference: float, spread: float) -> float:
    if np.isnan(difference) or difference == 0:
        return 1.0
    if not spread > 0:
        return 1.0 if np.isnan(spread) else 0.0
    return 2 * NormalDist().cdf(-abs(difference) / spread)

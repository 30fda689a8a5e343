"""Rules for several labels per picture: each class has one rule from logits to calibrated probabilities, and from these to labels."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Floats, Logits

_PRIOR = 10.0
_LARGEST_SLOPE, _LARGE = 100.0, 100.0


@dataclass(frozen=True)
class LabelRules:
    """One rule for each of C classes: probability = sigmoid(slope · logit + offset); the label is given if probability ≥ threshold.

    Attributes:
        thresholds: C numbers in 0–1; above 1 the label is never given.
        slopes: C positive numbers.
        offsets: C numbers.

    Raises:
        ValueError: if their lengths differ, or a number is not finite.
    """

    thresholds: tuple[float, ...]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    def __post_init__(self) -> None:
        rules = (self.thresholds, self.slopes, self.offsets)
        if len(set(map(len, rules))) != 1 or not all(np.isfinite(numbers).all() for numbers in rules):
            raise ValueError("expected one finite threshold, slope and offset for each class")

    @classmethod
    def plain(cls, num_classes: int) -> Self:
        """Rules without calibration: slope 1, offset 0 and threshold 0.5 for each class."""
        return cls((0.5,) * num_classes, (1.0,) * num_classes, (0.0,) * num_classes)

    def probabilities(self, logits: Logits) -> Logits:
        """Probability of each label, float32 `[N, C]`, of logits, float32 `[N, C]`; rows do not sum to 1."""
        scaled = logits * np.asarray(self.slopes, np.float32) + np.asarray(self.offsets, np.float32)
        return sigmoid(scaled)

    def labels(self, probabilities: Logits) -> npt.NDArray[np.bool_]:
        """Labels that are given, bool `[N, C]`, for probabilities, float32 `[N, C]`; a row may have no label."""
        given: npt.NDArray[np.bool_] = probabilities >= np.asarray(self.thresholds, np.float32)
        return given


def fit_rules(logits: Logits, labels: npt.NDArray[np.uint8], min_precision: float | None = None) -> LabelRules:
    """Fit calibration and threshold of each class on pictures that were not trained on.

    The calibration of each class is Platt scaling (Platt 1999), drawn towards the calibration of all classes together with the weight
    `_PRIOR`. The threshold gives the best F1 score, or the best recall at a given precision. To choose the threshold of a class with n
    positives, each picture counts as (n · label + _PRIOR · probability) / (n + _PRIOR) of a positive. So with many positives the labels
    decide, and with few positives the calibrated probabilities decide. Otherwise a class with two positives would get the threshold that
    happens to suit these two.

    Args:
        logits: float32 `[N, C]`, N ≥ 1.
        labels: uint8 `[N, C]`, 0 or 1.
        min_precision: precision that the thresholds must reach, 0–1; `None` for the best F1 score.
    """
    pooled = _platt(logits.ravel(), labels.ravel(), (1.0, 0.0), prior_weight=1.0)
    scales = [_platt(logits[:, column], labels[:, column], pooled, _PRIOR) for column in range(labels.shape[1])]
    calibration = LabelRules((0.5,) * len(scales), tuple(slope for slope, _ in scales), tuple(offset for _, offset in scales))
    probabilities = calibration.probabilities(logits).astype(np.float64)
    positives = labels.sum(axis=0)
    expected = (positives * labels + _PRIOR * probabilities) / (positives + _PRIOR)
    thresholds = tuple(_threshold(probabilities[:, column], expected[:, column], min_precision) for column in range(len(scales)))
    return dataclasses.replace(calibration, thresholds=thresholds)


def _platt(logits: Logits, labels: npt.NDArray[np.uint8], prior: tuple[float, float], prior_weight: float) -> tuple[float, float]:
    """Slope and offset that minimise the cross-entropy + `prior_weight` / 2 · squared distance of (log slope, offset) to the prior."""
    from scipy.optimize import minimize  # the import takes tenths of a second, and serving does not need it

    exact, centre = logits.astype(np.float64), np.array([math.log(prior[0]), prior[1]])

    def objective(parameters: Floats) -> tuple[float, Floats]:
        slope = math.exp(parameters[0])
        scaled = slope * exact + parameters[1]
        value = (np.logaddexp(0, scaled) - labels * scaled).sum() + 0.5 * prior_weight * ((parameters - centre) ** 2).sum()
        residuals = 1 / (1 + np.exp(-scaled.clip(-_LARGE, _LARGE))) - labels
        gradient = np.array([slope * (residuals * exact).sum(), residuals.sum()]) + prior_weight * (parameters - centre)
        return float(value), gradient

    bounds = [(math.log(1 / _LARGEST_SLOPE), math.log(_LARGEST_SLOPE)), (-_LARGE, _LARGE)]
    log_slope, offset = minimize(objective, centre, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(math.exp(log_slope)), float(offset)


def _threshold(probabilities: Floats, expected: Floats, min_precision: float | None) -> float:
    """Best threshold, midway between two neighbouring probabilities; `expected` is the fraction of a positive that a picture counts as."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # pictures of equal probability are given the label together
    hits, given = np.cumsum(expected[order])[last], last + 1
    if min_precision is None:
        best = int(np.argmax(2 * hits / (given + expected.sum())))
    else:
        reached = np.flatnonzero(hits / given >= min_precision)
        if not len(reached):  # no threshold reaches the precision here; calibrated probabilities of at least `min_precision` should
            return float(max(ranked[0], min_precision))
        best = int(reached[-1])
    below = ranked[last[best] + 1] if best + 1 < len(last) else 0.0
    return float((ranked[last[best]] + below) / 2)


def sigmoid(logits: Logits) -> Logits:
    """The logistic function, float32, without overflow."""
    small = np.exp(-np.abs(logits))
    result: Logits = np.where(logits >= 0, 1, small) / (1 + small)
    return result.astype(np.float32)

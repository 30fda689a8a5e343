"""Several labels per picture: from logits to calibrated probabilities, and from these to labels, by one rule for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Logits


@dataclass(frozen=True)
class LabelRules:
    """One rule for each of C classes: probability = sigmoid(slope · logit + offset); the label is given from the threshold on.

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
        """Uncalibrated probabilities, and 0.5 for each class."""
        return cls((0.5,) * num_classes, (1.0,) * num_classes, (0.0,) * num_classes)

    def probabilities(self, logits: Logits) -> Logits:
        """Probability of each label, float32 `[N, C]`, of logits, float32 `[N, C]`; rows do not sum to 1."""
        scaled = logits * np.asarray(self.slopes, np.float32) + np.asarray(self.offsets, np.float32)
        return sigmoid(scaled)

    def labels(self, probabilities: Logits) -> npt.NDArray[np.bool_]:
        """Labels that are given, bool `[N, C]`; a row may have none."""
        given: npt.NDArray[np.bool_] = probabilities >= np.asarray(self.thresholds, np.float32)
        return given


def sigmoid(logits: Logits) -> Logits:
    """The logistic function, float32, without overflow."""
    small = np.exp(-np.abs(logits))
    result: Logits = np.where(logits >= 0, 1, small) / (1 + small)
    return result.astype(np.float32)

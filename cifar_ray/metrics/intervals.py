"""Confidence intervals and significance tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from cifar_ray.metrics.accuracy import Integers

SIGNIFICANT = 0.05
FEW_PICTURES = 2000  # with fewer pictures, an accuracy is shown with its interval
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class ClassBias:
    """Prediction bias of one class: whether it is predicted as often as it occurs.

    Attributes:
        occurs: number of images of the class.
        predicted: number of images predicted as the class.
        p_value: p-value of an exact sign test between false positives and false negatives, adjusted for the number of classes
            (Holm 1979).
    """

    occurs: int
    predicted: int
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the difference is significant."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class PairedComparison:
    """Comparison of two models on the same images (McNemar 1947).

    Attributes:
        count: number of images.
        only_a: number of images that only the first model classifies correctly.
        only_b: number of images that only the second model classifies correctly.
    """

    count: int
    only_a: int
    only_b: int

    @property
    def difference(self) -> float:
        """Accuracy of the second model minus accuracy of the first, from -1 to 1."""
        return (self.only_b - self.only_a) / max(1, self.count)

    @property
    def p_value(self) -> float:
        """Exact p-value: probability of a difference this large if the models are equally good."""
        return sign_test(self.only_a, self.only_b)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the difference (Agresti & Min 2005, Statistics in Medicine 24)."""
        only_a, only_b, count = self.only_a + 0.5, self.only_b + 0.5, self.count + 2
        centre = (only_b - only_a) / count
        reach = _Z95 * math.sqrt(only_a + only_b - (only_b - only_a) ** 2 / count) / count
        return max(-1.0, centre - reach), min(1.0, centre + reach)


def accuracy_interval(correct: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a fraction (Wilson 1927), within 0–1; (0, 1) for a count of 0."""
    return wilson_interval(correct, count, _Z95)


def wilson_interval(part: float, count: int, z: float) -> tuple[float, float]:
    """Confidence interval of a fraction (Wilson 1927), within 0–1; (0, 1) for a count of 0.

    Args:
        part: number of items with the property, 0 to `count`.
        count: number of items, at least 0.
        z: half-width in standard errors; 1.96 for 95 %.
    """
    if count == 0:
        return 0.0, 1.0
    share, spread = part / count, z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    reach = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return 0.0 if part == 0 else max(0.0, centre - reach), 1.0 if part == count else min(1.0, centre + reach)


def difference_interval(first: float, second: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of the difference of two accuracies, each on `count` images.

    Method 10 of Newcombe (1998), Statistics in Medicine 17.

    Args:
        first: accuracy, 0–1; may be a mean over seeds.
        second: accuracy that is subtracted from `first`, 0–1.
        count: number of images, at least 1.
    """
    reach = [0.0, 0.0]  # squared, below and above
    for accuracy, below in ((first, 0), (second, 1)):
        low, high = accuracy_interval(accuracy * count, count)
        reach[below] += (accuracy - low) ** 2
        reach[1 - below] += (high - accuracy) ** 2
    return first - second - math.sqrt(reach[0]), first - second + math.sqrt(reach[1])


def describe_accuracy(accuracy: float, count: int | None) -> str:
    """Format an accuracy for the user, with its 95 % interval if it is from fewer than 2,000 pictures.

    Args:
        accuracy: 0–1.
        count: number of pictures; `None` if unknown.
    """
    if not count or count >= FEW_PICTURES:
        return f"{100 * accuracy:.2f} %"
    low, high = accuracy_interval(round(accuracy * count), count)
    return f"{100 * accuracy:.1f} % ({100 * low:.1f}–{100 * high:.1f} %, {count:,} picture{'s' * (count != 1)})"


def prediction_bias(confusion: Integers) -> list[ClassBias]:
    """Test for each class whether it is predicted more or less often than it occurs.

    If a class is predicted as often as it occurs, it has as many false positives as false negatives. A sign test compares the two.

    Args:
        confusion: int64 `[C, C]`, images by true class (row) and predicted class (column).
    """
    wrongly, missed = (confusion.sum(axis=axis) - np.diag(confusion) for axis in (0, 1))
    p_values = holm([sign_test(int(a), int(b)) for a, b in zip(wrongly, missed, strict=True)])
    occurs, predicted = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
    return [ClassBias(*values) for values in zip(occurs, predicted, p_values, strict=True)]


def sign_test(a: int, b: int) -> float:
    """Two-sided p-value of `a` heads and `b` tails from a fair coin, exact except for rounding."""
    tosses, fewer = a + b, min(a, b)
    if tosses == 0 or 2 * fewer == tosses:
        return 1.0
    taken = np.arange(fewer)
    log_ways = np.concatenate(([0.0], np.cumsum(np.log(tosses - taken) - np.log(taken + 1))))
    return min(1.0, 2 * float(np.exp(log_ways - tosses * math.log(2)).sum()))


def holm(p_values: list[float]) -> list[float]:
    """Adjust the p-values of several tests (Holm 1979), so that the family-wise error rate equals that of a single test."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted

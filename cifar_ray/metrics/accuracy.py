"""Figures of how well predictions fit labels, and how sure one may be of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SIGNIFICANT = 0.05
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Evaluation:
    """What a pass over one split gave.

    Attributes:
        loss: mean cross-entropy, nats an image.
        confusion: int64 `[C, C]`, images by true class (row) and predicted class (column).
    """

    loss: float
    confusion: Integers

    @property
    def count(self) -> int:
        """Images evaluated."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Images whose most probable class is the true one."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is the true one, 0…1."""
        return float(self.correct / max(1, self.count))

    def per_class_accuracy(self) -> Floats:
        """Recall of each class, float64 `[C]`, 0…1; NaN for a class without images."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=1))

    def per_class_precision(self) -> Floats:
        """Share of each class's predictions that are right, float64 `[C]`, 0…1; NaN for a class never predicted."""
        return _ratio(np.diag(self.confusion), self.confusion.sum(axis=0))

    def per_class_f1(self) -> Floats:
        """Harmonic mean of precision and recall, float64 `[C]`, 0…1; NaN for a class that neither occurs nor is predicted."""
        return _ratio(2 * np.diag(self.confusion), self.confusion.sum(axis=0) + self.confusion.sum(axis=1))


@dataclass(frozen=True)
class Calibration:
    """How often the network is right, by how sure it says it is (reliability diagram: Guo et al. 2017, arXiv 1706.04599, section 2).

    Attributes:
        counts: int64 `[B]`, images in each bin of confidence; bins are of equal width over 0…1.
        confidence: float64 `[B]`, mean of the bin; NaN where it is empty.
        accuracy: float64 `[B]`, the same.
    """

    counts: Integers
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error, 0…1: mean distance of confidence from accuracy over images."""
        return float(np.nansum(self.counts * np.abs(self.confidence - self.accuracy)) / max(1, self.counts.sum()))

    @property
    def overconfidence(self) -> float:
        """Mean confidence less accuracy, -1…1."""
        return float(np.nansum(self.counts * (self.confidence - self.accuracy)) / max(1, self.counts.sum()))


@dataclass(frozen=True)
class ClassBias:
    """Whether one class is predicted as often as it occurs.

    Attributes:
        occurs: images of the class.
        predicted: images taken for it.
        p_value: of an exact sign test between images wrongly taken for it and its images that were missed, adjusted for the
            number of classes (Holm 1979).
    """

    occurs: int
    predicted: int
    p_value: float

    @property
    def significant(self) -> bool:
        """Chance does not explain the difference."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same images (McNemar 1947).

    Attributes:
        count: images.
        only_a: images that only the first has right.
        only_b: images that only the second has right.
    """

    count: int
    only_a: int
    only_b: int

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first."""
        return (self.only_b - self.only_a) / max(1, self.count)

    @property
    def p_value(self) -> float:
        """How often a difference this large comes by chance where the models are equally good; exact."""
        return sign_test(self.only_a, self.only_b)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference (Agresti & Min 2005, Statistics in Medicine 24)."""
        only_a, only_b, count = self.only_a + 0.5, self.only_b + 0.5, self.count + 2
        centre = (only_b - only_a) / count
        reach = _Z95 * math.sqrt(only_a + only_b - (only_b - only_a) ** 2 / count) / count
        return max(-1.0, centre - reach), min(1.0, centre + reach)


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), within 0…1; all of it where nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share, spread = correct / count, _Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    reach = _Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def evaluate_logits(logits: npt.NDArray[np.float32], labels: Integers, temperature: float = 1.0) -> Evaluation:
    """Loss and confusion matrix of logits `[N, C]`, which are divided by the temperature first."""
    classes = logits.shape[1]
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    log_probabilities = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    loss = -float(log_probabilities[np.arange(len(labels)), labels].sum()) / max(1, len(labels))
    return Evaluation(loss, confusion_matrix(labels, logits.argmax(axis=1), classes))


def confusion_matrix(labels: Integers, predicted: Integers, classes: int) -> Integers:
    """Images by true class (row) and predicted class (column): int64 `[C, C]`."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def count_top_k(logits: npt.NDArray[np.float32], labels: Integers, k: int) -> int:
    """Images whose true class is among the `k` most probable; equal logits are ranked as `argmax` does, the first class first."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return int((rank < k).sum())


def calibrate(probabilities: npt.NDArray[np.float32], labels: Integers, bins: int = 15) -> Calibration:
    """Sorts images by the probability of their most probable class; 15 bins as in Guo et al. 2017."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    mean_confidence = _ratio(np.bincount(bin_of, weights=confidence, minlength=bins), counts)
    accuracy = _ratio(np.bincount(bin_of, weights=correct, minlength=bins), counts)
    return Calibration(counts.astype(np.int64), mean_confidence, accuracy)


def prediction_bias(confusion: Integers) -> list[ClassBias]:
    """Tests for each class whether it is predicted more or less often than it occurs.

    Images are paired with themselves: were both equally frequent, those wrongly taken for the class would be as many as its
    missed ones.
    """
    wrongly, missed = (confusion.sum(axis=axis) - np.diag(confusion) for axis in (0, 1))
    p_values = holm([sign_test(int(a), int(b)) for a, b in zip(wrongly, missed, strict=True)])
    occurs, predicted = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
    return [ClassBias(*values) for values in zip(occurs, predicted, p_values, strict=True)]


def sign_test(a: int, b: int) -> float:
    """Two-sided p-value of `a` heads and `b` tails of a fair coin, exact but for rounding."""
    tosses, fewer = a + b, min(a, b)
    if tosses == 0 or 2 * fewer == tosses:
        return 1.0
    taken = np.arange(fewer)
    log_ways = np.concatenate(([0.0], np.cumsum(np.log(tosses - taken) - np.log(taken + 1))))
    return min(1.0, 2 * float(np.exp(log_ways - tosses * math.log(2)).sum()))


def holm(p_values: list[float]) -> list[float]:
    """Adjusts p-values of several tests so that one false alarm among all is as rare as in a single test (Holm 1979)."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def _ratio(parts: npt.NDArray[np.generic], wholes: npt.NDArray[np.generic]) -> Floats:
    """`parts / wholes`, NaN where a whole is 0."""
    result = np.full(len(wholes), np.nan)
    np.divide(parts, wholes, out=result, where=np.asarray(wholes) > 0)
    return result

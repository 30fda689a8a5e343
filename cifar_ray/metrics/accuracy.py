"""Loss, confusion matrix, and the metrics that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_UNEVEN_RATIO = 1.5

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]  # int64 `[N]`, or uint8 `[N, C]` of 0 and 1 for several labels per picture


@dataclass(frozen=True)
class Evaluation:
    """Loss and confusion matrix of one split.

    Attributes:
        loss: mean cross-entropy, nats per image.
        confusion: int64 `[C, C]`, images by true class (row) and predicted class (column).
    """

    loss: float
    confusion: Integers

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """Number of images whose most probable class is the true one."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """Fraction of images whose most probable class is the true one, 0–1."""
        return float(self.correct / max(1, self.count))

    @property
    def score(self) -> float:
        """The figure by which models with one class per picture are compared: the accuracy."""
        return self.accuracy

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images, 0–1; the accuracy if all classes had equally many images."""
        return mean_of_known(self.per_class_accuracy())

    @property
    def macro_f1(self) -> float:
        """Mean F1 score of the classes that occur or are predicted, 0–1."""
        return mean_of_known(self.per_class_f1())

    def per_class_accuracy(self) -> Floats:
        """Recall of each class, float64 `[C]`, 0–1; NaN for a class without images."""
        return ratio(np.diag(self.confusion), self.confusion.sum(axis=1))

    def per_class_precision(self) -> Floats:
        """Precision of each class, float64 `[C]`, 0–1; NaN for a class that is never predicted."""
        return ratio(np.diag(self.confusion), self.confusion.sum(axis=0))

    def per_class_f1(self) -> Floats:
        """Harmonic mean of precision and recall, float64 `[C]`, 0–1; NaN for a class that neither occurs nor is predicted."""
        return ratio(2 * np.diag(self.confusion), self.confusion.sum(axis=0) + self.confusion.sum(axis=1))


def is_uneven(counts: Integers) -> bool:
    """Whether the largest class has over 1.5 times the images of the smallest, so that accuracy alone misleads; `counts` is int64 `[C]`."""
    return bool(counts.max() > _UNEVEN_RATIO * counts.min())


def evaluate_logits(logits: npt.NDArray[np.float32], labels: Integers, temperature: float = 1.0) -> Evaluation:
    """Compute loss and confusion matrix of logits, float32 `[N, C]`, divided by the temperature; labels are int64 `[N]`."""
    loss = float(cross_entropies(logits, labels, temperature).sum()) / max(1, len(labels))
    return Evaluation(loss, confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1]))


def cross_entropies(logits: Logits, labels: Integers, temperature: float = 1.0) -> Floats:
    """Cross-entropy of each image, nats, float64 `[N]`; logits are float32 `[N, C]`, labels int64 `[N]`."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    log_probabilities = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    losses: Floats = -log_probabilities[np.arange(len(labels)), labels]
    return losses


def confusion_matrix(labels: Integers, predicted: Integers, classes: int) -> Integers:
    """Number of images by true class (row) and predicted class (column), int64 `[C, C]`; both arguments are int64 `[N]`."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def count_top_k(logits: npt.NDArray[np.float32], labels: Integers, k: int) -> int:
    """Count images whose true class is among the `k` most probable ones; of equal logits, the first class ranks first, as in `argmax`."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & before)).sum(axis=1)
    return int((rank < k).sum())


def softmax(logits: Logits, temperature: float = 1.0) -> Logits:
    """Probabilities of logits ÷ temperature, float32 `[N, C]`."""
    exponentials = np.exp((logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature))
    probabilities: Logits = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def mean_of_known(values: Floats) -> float:
    """Mean of the values that are not NaN; 0 if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def ratio(parts: npt.NDArray[np.generic], wholes: npt.NDArray[np.generic]) -> Floats:
    """`parts / wholes`, float64 `[N]`; NaN where a whole is 0."""
    result = np.full(len(wholes), np.nan)
    np.divide(parts, wholes, out=result, where=np.asarray(wholes) > 0)
    return result

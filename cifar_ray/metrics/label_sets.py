"""Figures of predictions with several labels per picture: average precision, F1 and coverage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cifar_ray.metrics.accuracy import Floats, Integers, Labels, Logits, mean_of_known, ratio
from cifar_ray.metrics.calibration import Calibration, bin_by_confidence
from cifar_ray.metrics.label_rules import LabelRules

LabelSets = npt.NDArray[np.uint8]
_GROUPS = 20  # number of groups of the jackknife


@dataclass(frozen=True, eq=False)
class LabelSetFigures:
    """Figures of one split of N pictures and C classes.

    Attributes:
        count: N.
        loss: mean binary cross-entropy, summed over the classes, nats per picture.
        average_precision: float64 `[C]`, 0–1; NaN for a class that does not occur.
        occurs: int64 `[C]`, pictures with the label.
        given: int64 `[C]`, pictures to which the model gives the label.
        correct: int64 `[C]`, pictures with the label to which the model gives the label.
        coverage: mean number of labels, most probable first, that are needed to include all true labels (Tsoumakas et al. 2010); 0 for a
            picture without labels. The smallest possible value is the mean number of true labels.
        co_occurrence: int64 `[C, C]`, pictures with both labels; its diagonal is `occurs`.
    """

    count: int
    loss: float
    average_precision: Floats
    occurs: Integers
    given: Integers
    correct: Integers
    coverage: float
    co_occurrence: Integers

    @property
    def score(self) -> float:
        """mAP: mean of the average precisions of the classes that occur, 0–1."""
        return mean_of_known(self.average_precision)

    @property
    def micro_f1(self) -> float:
        """F1 score over all pairs of picture and label, 0–1; 0 if no label occurs and none is given."""
        return float(2 * self.correct.sum() / max(1, self.given.sum() + self.occurs.sum()))

    @property
    def macro_f1(self) -> float:
        """Mean F1 score of the classes that occur or are given, 0–1."""
        return mean_of_known(self.per_class_f1())

    @property
    def labels_per_picture(self) -> float:
        """Mean number of true labels."""
        return float(self.occurs.sum() / max(1, self.count))

    def per_class_precision(self) -> Floats:
        """Precision of each class, float64 `[C]`, 0–1; NaN for a class that is never given."""
        return ratio(self.correct, self.given)

    def per_class_recall(self) -> Floats:
        """Recall of each class, float64 `[C]`, 0–1; NaN for a class that does not occur."""
        return ratio(self.correct, self.occurs)

    def per_class_f1(self) -> Floats:
        """F1 score of each class, float64 `[C]`, 0–1; NaN for a class that neither occurs nor is given."""
        return ratio(2 * self.correct, self.given + self.occurs)


def count_labels(labels: Labels, num_classes: int) -> npt.NDArray[np.int64]:
    """Number of images per class, int64 `[num_classes]`, of labels int64 `[N]` or uint8 `[N, C]`."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64) if labels.ndim == 1 else labels.sum(axis=0, dtype=np.int64)


def label_set_ids(labels: Labels) -> npt.NDArray[np.int64]:
    """A number for the labels of each image, int64 `[N]`: its class, or for several labels a number for each different set of labels."""
    if labels.ndim == 1:
        return labels.astype(np.int64, copy=False)
    numbers: npt.NDArray[np.int64] = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return numbers


def evaluate_label_sets(logits: Logits, labels: LabelSets, rules: LabelRules) -> LabelSetFigures:
    """Compare logits, float32 `[N, C]`, with labels, uint8 `[N, C]`, 0 or 1; the loss is computed with the rules' calibration."""
    given = rules.labels(rules.probabilities(logits))
    scaled = logits.astype(np.float64) * rules.slopes + rules.offsets
    marks = labels.astype(np.float64)  # exact for counts, and a matrix product of floats is twenty times as fast as of integers
    return LabelSetFigures(
        count=len(labels),
        loss=float(binary_cross_entropies(scaled, labels).sum()) / max(1, len(labels)),
        average_precision=average_precisions(logits, labels),
        occurs=labels.sum(axis=0, dtype=np.int64),
        given=given.sum(axis=0, dtype=np.int64),
        correct=(given & (labels == 1)).sum(axis=0, dtype=np.int64),
        coverage=_coverage(scaled, labels),
        co_occurrence=(marks.T @ marks).astype(np.int64),
    )


def binary_cross_entropies(logits: Floats | Logits, labels: LabelSets) -> Floats:
    """Binary cross-entropy of each label, nats: float64 `[N, C]`."""
    exact = logits.astype(np.float64)
    losses: Floats = np.maximum(exact, 0) - exact * labels + np.log1p(np.exp(-np.abs(exact)))
    return losses


def average_precisions(scores: Floats | Logits, labels: LabelSets) -> Floats:
    """Area under the steps of the precision-recall curve of each class, as in scikit-learn: float64 `[C]`.

    For each picture with the label, take the precision among all pictures that score at least as high. The area is their mean.

    Args:
        scores: `[N, C]`, higher for more probable labels.
        labels: uint8 `[N, C]`, 0 or 1.

    Returns:
        0–1; NaN for a class that does not occur.
    """
    found = np.full(labels.shape[1], np.nan)
    for column in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(-scores[:, column], kind="stable")
        ranked, true = scores[order, column], labels[order, column]
        last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last of equal scores, so that their order does not matter
        hits = np.cumsum(true, dtype=np.int64)[last]
        found[column] = (np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1]
    return found


def mean_average_precision(scores: Floats | Logits, labels: LabelSets) -> float:
    """mAP, 0–1, see `average_precisions`."""
    return mean_of_known(average_precisions(scores, labels))


def map_spread(scores: Floats | Logits, labels: LabelSets) -> float:
    """Standard error of the mAP over the choice of pictures, see `jackknife_spread`: 0–1."""
    return float(jackknife_spread(lambda rows: np.array(mean_average_precision(scores[rows], labels[rows])), len(labels)))


def jackknife_spread(statistic: Callable[[npt.NDArray[np.bool_]], Floats], count: int) -> Floats:
    """Standard error of a statistic over the choice of pictures, by the delete-a-group jackknife (Kott 2001) with 20 groups.

    Args:
        statistic: computes numbers, in any shape, for the pictures in a mask, bool `[count]`.
        count: number of pictures.
    """
    groups = min(_GROUPS, count)
    group_of = np.random.default_rng(0).permutation(count) % max(1, groups)
    without = np.array([statistic(group_of != group) for group in range(groups)])
    result: Floats = np.sqrt((groups - 1) / groups * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return result


def calibrate_labels(probabilities: Logits, labels: LabelSets, bins: int = 15) -> Calibration:
    """Bin all pairs of picture and label by their probability; `accuracy` is the fraction of pairs that are true."""
    return bin_by_confidence(probabilities.ravel().astype(np.float64), labels.ravel() == 1, bins)


def _coverage(scores: Floats, labels: LabelSets) -> float:
    lowest = np.where(labels == 1, scores, np.inf).min(axis=1, keepdims=True)
    return float((scores >= lowest).sum(axis=1).mean()) if len(scores) else 0.0

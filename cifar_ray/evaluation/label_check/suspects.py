"""Find labels that are probably wrong, near-duplicates with different labels, and pictures unlike their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cifar_ray.data.task_progress import StartTask
from cifar_ray.evaluation.label_check.confident_learning import wrong_labels
from cifar_ray.evaluation.label_check.labelled_pictures import LabelledPictures
from cifar_ray.evaluation.label_check.out_of_fold import OutOfFold
from cifar_ray.evaluation.measures.leakage import find_duplicates
from cifar_ray.metrics.familiarity import unit

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Reason = Literal["duplicate", "label", "unlike"]

_NEAREST = 5  # number of nearest pictures of the same class
_LEAST = 20  # minimum size of a class; a smaller class does not show which similarity is usual
_MOST = 5000  # maximum number of pictures of a class that each picture is compared with
_UNUSUAL_STD = 5.0
_MAD_TO_STD = 1.4826  # from the median absolute deviation to the standard deviation of a normal distribution


@dataclass(frozen=True)
class Suspect:
    """A picture whose label a person should check.

    Attributes:
        row: row of the picture.
        reason: `label`: another class is more likely; `duplicate`: a near-duplicate has another label; `unlike`: the picture is unlike the
            others of its class.
        suggested: number of the suggested class; the picture's present class if no other is better.
        own_probability: probability of the present label, 0–1.
        suggested_probability: probability of the suggested label, 0–1.
        other: row of the near-duplicate; `None` for other reasons.
    """

    row: int
    reason: Reason
    suggested: int
    own_probability: float
    suggested_probability: float
    other: int | None = None


def find_suspects(pictures: LabelledPictures, predicted: OutOfFold, progress: StartTask) -> list[Suspect]:
    """Find all suspects, the most suspicious first: near-duplicates, then wrong labels, then pictures unlike their class.

    Each picture is listed once, with the first of these reasons that applies.

    Args:
        pictures: the pictures with their labels.
        predicted: predictions for the same pictures.
        progress: receives the progress.

    Raises:
        MissingDependencyError: if cleanlab is not installed.
    """
    labels, probabilities = pictures.labels, predicted.probabilities
    likeliest = probabilities.argmax(axis=1)
    found: dict[int, Suspect] = {}

    def add(row: int, reason: Reason, suggested: int, other: int | None = None) -> None:
        own, better = float(probabilities[row, labels[row]]), float(probabilities[row, suggested])
        found.setdefault(row, Suspect(row, reason, suggested, own, better, other))

    for row, other in _contradictions(pictures, predicted.features, progress):
        # the less likely of the two labels is the suspect
        wrong, right = sorted((row, other), key=lambda one: probabilities[one, labels[one]])
        add(wrong, "duplicate", int(labels[right]), right)
    for row in wrong_labels(labels, probabilities).tolist():
        add(row, "label", int(likeliest[row]))
    for row in unlike_their_class(labels, predicted.features).tolist():
        add(row, "unlike", int(labels[row]))
    return list(found.values())


def _contradictions(pictures: LabelledPictures, features: Floats, progress: StartTask) -> list[tuple[int, int]]:
    """Rows of near-duplicates with different labels, the most similar first."""
    small = pictures.small()
    pairs = find_duplicates(small, embeddings=(features, features), on_progress=progress("searching near-duplicates", len(small)))
    labels = pictures.labels
    return [(pair.query, pair.reference) for pair in pairs if labels[pair.query] != labels[pair.reference]]


def unlike_their_class(labels: Integers, features: Floats) -> Integers:
    """Rows of pictures that are far less similar to the nearest pictures of their class than usual in the class, least similar first.

    Args:
        labels: int64 `[N]`.
        features: float32 `[N, D]`; each row has length 1.
    """
    deviations = np.zeros(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < _LEAST:
            continue
        # what all pictures of a class have in common does not distinguish them
        centred = unit(features[rows] - features[rows].mean(axis=0))
        compared = centred[np.random.default_rng(int(label)).permutation(len(rows))[:_MOST]]
        nearest = np.concatenate(
            [
                np.partition(centred[start : start + _MOST] @ compared.T, -_NEAREST - 1, axis=1)[:, -_NEAREST - 1 :]
                for start in range(0, len(rows), _MOST)
            ]
        )
        similarity = np.sort(nearest, axis=1)[:, :_NEAREST].mean(axis=1)  # without the picture itself
        middle = np.median(similarity)
        deviations[rows] = (similarity - middle) / (_MAD_TO_STD * np.median(np.abs(similarity - middle)) + 1e-6)
    rows = np.flatnonzero(deviations < -_UNUSUAL_STD)
    order: Integers = rows[np.argsort(deviations[rows], kind="stable")]
    return order

"""Predict each label with a linear head that was not trained on the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cifar_ray.config import TrainConfig
from cifar_ray.data.task_progress import StartTask
from cifar_ray.errors import ConfigError, ResourceError, advising_on_memory
from cifar_ray.evaluation.label_check.confident_learning import wrong_labels
from cifar_ray.evaluation.label_check.labelled_pictures import LabelledPictures
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.accuracy import softmax
from cifar_ray.metrics.familiarity import unit
from cifar_ray.training.probe.extraction import extract
from cifar_ray.training.probe.head import FOLDS, assign_folds, cross_validate
from cifar_ray.training.probe.linear_probe import open_backbone

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

_AT_ONCE = 256
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions for N pictures, each by a head that was trained on the pictures of the other folds.

    Attributes:
        probabilities: float32 `[N, C]`.
        features: float32 `[N, D]`; each row has length 1.
    """

    probabilities: Floats
    features: Floats


def predict_out_of_fold(pictures: LabelledPictures, config: TrainConfig, predictor: Predictor | None, progress: StartTask) -> OutOfFold:
    """Compute features of all pictures, and fit a linear head for each fold.

    Near-duplicates of one class share a fold; otherwise, the head would know the label of a picture from its copy.

    Args:
        pictures: the pictures with their labels.
        config: network, weights and seed of a probe.
        predictor: a model whose features are used instead; it should not have been trained on these pictures.
        progress: receives the progress.

    Raises:
        ConfigError: if the network of the model does not end in a linear layer, so that it gives no features.
        ConfigError, DataError: see `open_backbone`.
        ResourceError: if there is too little memory.
    """
    with advising_on_memory("free memory, or check a part of the pictures", ResourceError):
        if predictor is None:
            backbone, _ = open_backbone(config, pictures.size_px, mirror=False)
            features = extract(backbone, 1, {"all": pictures}, progress)["all"]
        else:
            features = _features_of(predictor, pictures, progress)
        similar = unit(features)
        on_fitted = progress("cross-validating", _ROUNDS * FOLDS * len(pictures))
        classes = len(pictures.class_names)
        probabilities = judge(
            features, pictures.labels, classes, pictures.bursts, config.seed, lambda fits: on_fitted(fits * len(pictures))
        )
        return OutOfFold(probabilities, similar)


def judge(
    features: Floats, labels: Integers, num_classes: int, groups: Integers, seed: int, on_step: Callable[[int], None] = lambda _: None
) -> Floats:
    """Probabilities of each class, float32 `[N, C]`, from heads that were not fitted on the picture.

    They are the mean of three rounds with different folds. The heads of the second and third round are fitted without the pictures whose
    labels looked wrong before, so that these do not pull the heads towards themselves.

    Args:
        features: float32 `[N, D]`; they are standardised in place.
        labels: int64 `[N]`.
        num_classes: C.
        groups: int64 `[N]`; near-duplicates have equal numbers.
        seed: seed of the folds.
        on_step: called with 1 after each fit.

    Raises:
        MissingDependencyError: if cleanlab is not installed.
    """
    total = np.zeros((len(labels), num_classes), np.float32)
    for number in range(_ROUNDS):
        kept = np.ones(len(labels), np.float32)
        if number:
            kept[wrong_labels(labels, total / np.float32(number))] = 0
        logits = cross_validate(features, labels, num_classes, assign_folds(labels, groups, seed + number), kept, on_step)
        total += softmax(logits).astype(np.float32)
    return total / np.float32(_ROUNDS)


def _features_of(predictor: Predictor, pictures: LabelledPictures, progress: StartTask) -> Floats:
    on_done = progress("computing features", len(pictures))
    blocks = []
    for start in range(0, len(pictures), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(pictures)))
        features = predictor.predict(pictures.read(rows)).features
        if not features.shape[1]:
            raise ConfigError("this model gives no features; choose a model whose network ends in a linear layer, or leave it out")
        blocks.append(features)
        on_done(len(rows))
    return np.concatenate(blocks)

"""What training says of itself: of each epoch, and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cifar_ray.data.batches.loader import Normalization
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Architecture, Bundle
from cifar_ray.store.gallery import Judged

Weights = dict[str, Tensor]
Confusion = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EpochReport:
    """One line of a run's history.

    Attributes:
        epoch: counted from 1.
        train_loss: mean over the epoch's images, with label smoothing, nats an image.
        train_accuracy: on augmented images, while learning, 0…1.
        val_loss: cross-entropy; `None` without a validation split.
        val_accuracy: 0…1; `None` without a validation split.
        learning_rate: of the first optimizer group at the last step.
        seconds: of training and evaluation.
        images_per_s: trained by all workers together, evaluation not counted.
        improved: these are the weights to keep so far.
        val_confusion: images by true class (row) and predicted class; `None` without a validation split.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float
    seconds: float
    images_per_s: float
    improved: bool
    val_confusion: Confusion | None = None

    def figures(self) -> dict[str, Any]:
        """All but the confusion matrix: what fits into a row of a table."""
        return {name: value for name, value in vars(self).items() if name != "val_confusion"}


@dataclass(frozen=True)
class FitResult:
    """What a finished training leaves, equal on all workers.

    Attributes:
        best_epoch: whose weights were kept.
        normalization: of the training images.
        metrics: by name: `val_accuracy`, `test_accuracy`, `test_accuracy_tta` and those of `Trust.metrics`, where there are such splits;
            0…1 and nats.
        precision: format that was used.
        train_seconds: all epochs, evaluation included.
        architecture: name and arguments of the network.
        trust: fitted on validation; as it stands where there is none.
        parent_weights_sha256: of the bundle that training began with; `None` for fresh weights.
        test_confusion: as `EpochReport.val_confusion`, of the kept weights on test.
        test_judged: what they say of each test image.
    """

    best_epoch: int
    normalization: Normalization
    metrics: dict[str, float]
    precision: str
    train_seconds: float
    architecture: Architecture
    trust: Trust
    parent_weights_sha256: str | None = None
    test_confusion: Confusion | None = None
    test_judged: Judged | None = None


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        name: of the run.
        path: of its folder, in the file system of the storage.
        result: what the workers found.
        history: a report an epoch.
        weights: of the best epoch, on the CPU.
        restarts: how often workers were lost and training went on with new ones.
        repeated_steps: how many were done again for it.
        workers: epoch and step, counted from 1, at which workers began, and how many there were.
    """

    name: str
    path: str
    result: FitResult
    history: list[EpochReport]
    weights: Weights
    restarts: int = 0
    repeated_steps: int = 0
    workers: Sequence[tuple[int, int, int]] = ()


@dataclass(frozen=True)
class SavedModel:
    """A model that is now in the store.

    Attributes:
        bundle: with its name and version.
        promoted: whether it is `production` now.
        reason: why, or why not.
    """

    bundle: Bundle
    promoted: bool
    reason: str

"""Results of training: of each epoch, and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cifar_ray.data.batches.loader import Normalization
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Architecture, Bundle, PretrainedOrigin
from cifar_ray.store.gallery import SplitPredictions

Weights = dict[str, Tensor]
Confusion = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EpochReport:
    """Figures of one epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        train_loss: mean over the epoch's images, with label smoothing, nats per image.
        train_accuracy: accuracy on augmented images during training, 0–1; `None` with several labels per image.
        val_loss: cross-entropy; `None` without a validation split.
        val_accuracy: 0–1; `None` without a validation split, or with several labels per image.
        learning_rate: `optimizer.lr`, scaled to the batch and by the schedule, in the last step of the epoch; 0 for a probe. Groups with a
            factor of their own, and the SGD of `muon`, are in proportion.
        seconds: duration of training and evaluation.
        images_per_s: training images per second of all workers, without evaluation.
        improved: whether these are the best weights so far.
        val_map: mean average precision, 0–1; `None` with one class per image.
        val_confusion: images by true class (row) and predicted class; `None` without a validation split.
    """

    epoch: int
    train_loss: float
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float
    seconds: float
    images_per_s: float
    improved: bool
    val_map: float | None = None
    val_confusion: Confusion | None = None

    @property
    def val_score(self) -> float | None:
        """The figure by which epochs are compared, accuracy or mAP; `None` without a validation split."""
        return self.val_accuracy if self.val_map is None else self.val_map

    def figures(self) -> dict[str, Any]:
        """Figures by name, for a row of a table; without the confusion matrix, and without `val_map` if it is `None`."""
        left_out = {"val_confusion"} | ({"val_map"} if self.val_map is None else set())
        return {name: value for name, value in vars(self).items() if name not in left_out}


@dataclass(frozen=True)
class FitResult:
    """Result of a finished training, equal on all workers.

    Attributes:
        best_epoch: epoch of the best weights.
        normalization: normalization of the inputs.
        metrics: by name: `val_accuracy`, `test_accuracy`, `test_accuracy_tta` and those of `Trust.metrics`, for the existing splits;
            with uneven classes also `…_balanced_accuracy` and `…_macro_f1`; with several labels per image `…_map` and its standard
            error `…_map_sd` instead of accuracies; 0–1 and nats.
        precision: number format of the training.
        train_seconds: duration of all epochs, including evaluation.
        architecture: name and arguments of the network.
        trust: fitted on the validation images, or for a probe by cross-validation; `Trust.plain` without validation images.
        parent_weights_sha256: sha256 of the weights of the parent bundle; `None` for fresh weights.
        test_confusion: as `EpochReport.val_confusion`, for the best weights on the test images.
        test_predictions: predictions for each test image.
        pretrained: origin of the pretrained weights; `None` for fresh weights.
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
    test_predictions: SplitPredictions | None = None
    pretrained: PretrainedOrigin | None = None


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        name: name of the run.
        path: path of its folder, in the file system of the storage.
        result: result from the workers.
        history: one report per epoch.
        weights: weights of the best epoch, on the CPU.
        restarts: number of restarts after worker failures.
        repeated_steps: number of steps that were repeated after restarts.
        workers: `(epoch, step, number of workers)` of each start of the workers; epoch and step count from 1.
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
    """A model that was saved to the store.

    Attributes:
        bundle: its bundle, with name and version.
        promoted: whether it is `production` now.
        reason: reason for promoting it or not.
        pictures: number of test pictures in its gallery.
    """

    bundle: Bundle
    promoted: bool
    reason: str
    pictures: int = 0

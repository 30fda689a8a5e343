"""The training loss: cross-entropy, focal or asymmetric loss, with weights for uneven classes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_ray.config import TrainConfig
from cifar_ray.metrics.accuracy import Labels

# Defaults of Ridnik et al. 2021: exponents of positives and negatives, and the probability below which a negative does not count
_POSITIVE_GAMMA, _NEGATIVE_GAMMA, _MARGIN = 1.0, 4.0, 0.05
_SMALLEST = 1e-6  # lower bound of the base of a power, because with an exponent below 1 the slope at 0 is infinite


class Loss(Protocol):
    """The loss of a batch."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, summed over the images.

        Args:
            logits: float32 `[N, C]`.
            labels: from the loader, see `TrainingLoss.__call__` and `LabelSetLoss.__call__`.
        """

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """Number of images whose most probable class is the true one; `None` for several labels per image."""


def training_loss(config: TrainConfig, labels: Labels, num_classes: int, device: torch.device) -> Loss:
    """The loss of a config for one class or several labels per image.

    Args:
        config: loss, class weights and label smoothing.
        labels: of all training images, int64 `[N]` or uint8 `[N, C]`.
        num_classes: number of classes.
        device: device of the logits.
    """
    return TrainingLoss(config, labels, num_classes, device) if labels.ndim == 1 else LabelSetLoss(config, labels, device)


class TrainingLoss:
    """The loss of a batch, summed over its images.

    Args:
        config: loss, class weights and label smoothing.
        labels: int64 `[N]`, of all training images.
        num_classes: number of classes.
        device: device of the logits.
    """

    def __init__(self, config: TrainConfig, labels: npt.NDArray[np.int64], num_classes: int, device: torch.device) -> None:
        self._smoothing = config.label_smoothing
        self._gamma = config.focal_gamma if config.loss == "focal" else 0.0
        self._weights: Tensor | None = None
        if config.class_weights == "balanced":
            self._weights = torch.from_numpy(balanced_weights(labels, num_classes).astype(np.float32)).to(device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the summed loss.

        Args:
            logits: float32 `[N, C]`.
            labels: from the loader: int64 `[N]`; for mixed images the weight of each class, float32 `[N, C]`; if images have weights,
                float32 `[N, C + 1]`, with the weight of the image in the last column.
        """
        labels, image_weights = split_weights(labels, logits.shape[1])
        if self._weights is None and image_weights is None and not self._gamma:
            return F.cross_entropy(logits, labels, label_smoothing=self._smoothing, reduction="sum")
        log_p = F.log_softmax(logits, dim=1)
        factors = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[1]).float()
        if self._weights is not None:
            factors = factors * self._weights
        if image_weights is not None:
            factors = factors * image_weights[:, None]
        if self._gamma:  # Lin et al. 2017 (arXiv 1708.02002)
            factors = factors * (1 - log_p.exp()).clamp_min(_SMALLEST) ** self._gamma
        # The factors apply to the smoothed loss of the true class. F.cross_entropy(weight=…) instead weights the smoothing of each class,
        # which pulls all images towards rare classes.
        true, uniform = (factors * log_p).sum(), (factors.sum(1) * log_p.mean(1)).sum()
        return -torch.lerp(true, uniform, self._smoothing)

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Implements `Loss`; for mixed images the class with the larger weight is the true one."""
        classes, _ = split_weights(labels, logits.shape[1])
        true = classes.argmax(1) if classes.is_floating_point() else classes
        return (logits.argmax(1) == true).sum()


class LabelSetLoss:
    """Binary cross-entropy of each label, or its focal or asymmetric form, summed over images and classes.

    The asymmetric loss (Ridnik et al. 2021, arXiv 2009.14119, section 2) gives easy negatives, of which each image has many, little
    weight. The focal loss (Lin et al. 2017) is the form with equal exponents and no margin. Label smoothing moves each target towards 1/2.

    Args:
        config: loss, class weights and label smoothing.
        labels: uint8 `[N, C]`, of all training images.
        device: device of the logits.
    """

    def __init__(self, config: TrainConfig, labels: npt.NDArray[np.uint8], device: torch.device) -> None:
        self._smoothing = config.label_smoothing
        self._gammas, self._margin = {
            "cross_entropy": ((0.0, 0.0), 0.0),
            "focal": ((config.focal_gamma, config.focal_gamma), 0.0),
            "asymmetric": ((_POSITIVE_GAMMA, _NEGATIVE_GAMMA), _MARGIN),
        }[config.loss]
        weights = positive_weights(labels) if config.class_weights == "balanced" else np.ones(labels.shape[1])
        self._weights = torch.from_numpy(weights.astype(np.float32)).to(device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Implements `Loss`; labels are uint8 `[N, C]`, or for mixed images float32 `[N, C]` in 0–1, with weights `[N, C + 1]`."""
        labels, image_weights = split_weights(labels, logits.shape[1])
        targets = torch.lerp(labels.float(), torch.full_like(logits, 0.5), self._smoothing)
        factors = None if image_weights is None else image_weights[:, None]
        if not any(self._gammas):
            return F.binary_cross_entropy_with_logits(logits, targets, factors, pos_weight=self._weights, reduction="sum")
        p = torch.sigmoid(logits)
        shifted = (p - self._margin).clamp_min(0)
        negative = torch.log1p(-shifted) if self._margin else F.logsigmoid(-logits)
        positive = F.logsigmoid(logits) * (1 - p).clamp_min(_SMALLEST) ** self._gammas[0] * self._weights
        losses = targets * positive + (1 - targets) * negative * shifted.clamp_min(_SMALLEST) ** self._gammas[1]
        return -(losses if factors is None else losses * factors).sum()

    def hits(self, logits: Tensor, labels: Tensor) -> None:
        """Implements `Loss`; always `None`, because an image has several labels."""


def positive_weights(labels: Labels) -> npt.NDArray[np.float64]:
    """Weight of the positives of each class, float64 `[C]`: images without the label ÷ images with it; 1 if it never occurs."""
    counts = labels.sum(axis=0, dtype=np.int64)
    weights = np.ones(labels.shape[1])
    np.divide(len(labels) - counts, counts, out=weights, where=counts > 0)
    return weights


def split_weights(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """Separate the weights of images, float32 `[N]`, from labels with `num_classes + 1` columns; `None` if there are no weights."""
    if labels.ndim == 2 and labels.shape[1] > num_classes:
        return labels[:, :-1], labels[:, -1]
    return labels, None


def balanced_weights(labels: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float64]:
    """Weight of each class, float64 `[C]`: N / (C · n) for a class with n of N images (King & Zeng 2001, as in scikit-learn).

    The mean weight over the images is 1. A class without images has weight 0 and does not count in C.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = np.count_nonzero(counts)
    weights = np.zeros(num_classes)
    np.divide(len(labels), present * counts, out=weights, where=counts > 0)
    return weights

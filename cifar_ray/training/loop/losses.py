"""The training loss: cross-entropy or focal loss, with weights for uneven classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_ray.config import TrainConfig

_SMALLEST = 1e-6  # of 1 - p: its power has an infinite slope at 0 for an exponent below 1


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
            labels: as from the loader: int64 `[N]`, or the weight of each class for mixed images, float32 `[N, C]`; with weights of
                images float32 `[N, C + 1]`.
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


def split_weights(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """Separate the weights of images, float32 `[N]`, from labels with `num_classes + 1` columns; `None` if there are no weights."""
    if labels.ndim == 2 and labels.shape[1] > num_classes:
        return labels[:, :-1], labels[:, -1]
    return labels, None


def true_classes(labels: Tensor, num_classes: int) -> Tensor:
    """The class of each image, int64 `[N]`; of a mixed one the class with the larger weight."""
    classes, _ = split_weights(labels, num_classes)
    return classes.argmax(1) if classes.is_floating_point() else classes


def balanced_weights(labels: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float64]:
    """Weight of each class, float64 `[C]`: N / (C · n), so that their mean over the images is 1 (King & Zeng 2001, as in scikit-learn).

    A class without images has weight 0 and does not count in C.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = np.count_nonzero(counts)
    weights = np.zeros(num_classes)
    np.divide(len(labels), present * counts, out=weights, where=counts > 0)
    return weights

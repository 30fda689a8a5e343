"""Statistics of a data set: mean and standard deviation of its channels, and the scale of its weights."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cifar_ray.data.dataset import ImageDataset
from cifar_ray.errors import DataError

ChannelValues = tuple[float, float, float]

_CHUNK_BYTES = 4 << 20


def channel_mean_std(dataset: ImageDataset) -> tuple[ChannelValues, ChannelValues]:
    """Mean and standard deviation of each channel over all pixels, from an exact histogram.

    Returns:
        `(mean, std)`, each `(R, G, B)` in 0–1. The std of a constant channel is 1, so that a division by it is safe.

    Raises:
        DataError: if the data set is empty.
    """
    if not len(dataset):
        raise DataError("channel statistics need at least one image")
    histogram = ChannelHistogram()
    step = max(1, _CHUNK_BYTES // dataset.images[0].nbytes)
    for start in range(0, len(dataset), step):
        histogram.add(dataset.images[start : start + step])
    return histogram.mean_std()


def training_weights(weights: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32] | None:
    """Weights of the training images, float32 `[N]`, scaled to a mean of 1, so that learning rates keep their meaning.

    Raises:
        DataError: if all are 0.
    """
    if weights is None:
        return None
    mean = weights.mean(dtype=np.float64)
    if not mean:
        raise DataError("the weights of all training images are 0; give some of them a weight, or leave it out with --columns weight=")
    scaled: npt.NDArray[np.float32] = (weights / mean).astype(np.float32)
    return scaled


class ChannelHistogram:
    """Histogram of each channel, updated one block of images at a time."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)

    def add(self, images: npt.NDArray[np.uint8]) -> None:
        """Add the pixels of images, uint8 `[N, H, W, 3]`."""
        for channel in range(3):
            self._counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)

    def mean_std(self) -> tuple[ChannelValues, ChannelValues]:
        """Mean and standard deviation, as `channel_mean_std` returns them."""
        red, green, blue = (_mean_std(counts.tolist()) for counts in self._counts)
        return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def _mean_std(counts: list[int]) -> tuple[float, float]:
    """Mean and standard deviation from counts per value, exact because Python's integers do not round."""
    number = sum(counts)
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    std = math.sqrt(number * squares - total * total) / (255 * number)
    return total / (255 * number), std or 1.0

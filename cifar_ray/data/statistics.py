"""Channel statistics of a data set."""

from __future__ import annotations

import math

import numpy as np

from cifar_ray.data.dataset import ImageDataset
from cifar_ray.errors import DataError

_CHUNK_BYTES = 4 << 20


def channel_mean_std(dataset: ImageDataset) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels, from an exact histogram.

    Returns:
        `(mean, std)`, each `(R, G, B)` in 0…1. The std of a constant channel is given as 1, so that dividing by it is safe.

    Raises:
        DataError: if the data set is empty.
    """
    if not len(dataset):
        raise DataError("channel statistics need at least one image")
    histogram = np.zeros((3, 256), np.int64)
    step = max(1, _CHUNK_BYTES // dataset.images[0].nbytes)
    for start in range(0, len(dataset), step):
        chunk = dataset.images[start : start + step]
        for channel in range(3):
            histogram[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    red, green, blue = (_mean_std(counts.tolist()) for counts in histogram)
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def _mean_std(counts: list[int]) -> tuple[float, float]:
    """From pixels a value: Python's integers do not round."""
    number = sum(counts)
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    std = math.sqrt(number * squares - total * total) / (255 * number)
    return total / (255 * number), std or 1.0

"""The order of the training images in an epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar_ray.config import SamplingName

_WHOLE_SAMPLE_PX = 32  # a sample of larger images has fewer images, but no more pixels in total


def draw_order(labels: Tensor, num_classes: int, sampling: SamplingName, generator: torch.Generator) -> Tensor:
    """Draw the images of an epoch.

    Args:
        labels: int64 `[N]`, on the CPU.
        num_classes: number of classes.
        sampling: `natural` is a permutation. `balanced` draws N / C images, ±1, of each of the C classes that have images: a large class
            leaves some out; a small class shows all its images once more before it repeats any of them again.
        generator: the only source of randomness, on the CPU.

    Returns:
        int64 `[N]`, shuffled.
    """
    if sampling == "natural":
        return torch.randperm(len(labels), generator=generator)
    rows = [mine for label in range(num_classes) if len(mine := torch.nonzero(labels == label).flatten())]
    first = torch.randperm(len(rows), generator=generator).tolist()  # if N / C is not whole, the first classes get one more image
    quotas = {kind: len(range(place, len(labels), len(rows))) for place, kind in enumerate(first)}
    drawn = torch.cat([_repeated(mine, quotas[kind], generator) for kind, mine in enumerate(rows)])
    return drawn[torch.randperm(len(drawn), generator=generator)]


def _repeated(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The first `count` rows of several permutations in sequence, int64."""
    rounds = -(-count // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)])[:count]


def spread_rows(count: int, labels: npt.NDArray[np.int64], size_px: int) -> npt.NDArray[np.int64]:
    """Rows of a sample, int64 `[n]`, ascending: from each class its share of the sample, evenly spread over the class.

    The order of the data set does not matter. Simply taking every tenth image would give one class if the labels repeat 0–9.

    Args:
        count: number of images of up to 32 px; of larger images, fewer are taken, with the same total number of pixels.
        labels: int64 `[N]`.
        size_px: side of the images.
    """
    count = min(len(labels), max(1, count * _WHOLE_SAMPLE_PX**2 // max(_WHOLE_SAMPLE_PX, size_px) ** 2))
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.arange(count) * len(labels) // count])

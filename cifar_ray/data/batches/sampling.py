"""The order of the training images in an epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar_ray.config import SamplingName

_WHOLE_SAMPLE_PX = 32  # a sample of larger images has fewer images and the same number of pixels


def draw_order(labels: Tensor, num_classes: int, sampling: SamplingName, generator: torch.Generator) -> Tensor:
    """Draw the images of an epoch.

    Args:
        labels: int64 `[N]`, on the CPU.
        num_classes: number of classes.
        sampling: `natural` is a permutation. `balanced` gives each class that has images N / C of them, up to one: a large class leaves
            some out, a small one repeats all its images before it repeats one again.
        generator: the only source of randomness, on the CPU.

    Returns:
        int64 `[N]`, shuffled.
    """
    if sampling == "natural":
        return torch.randperm(len(labels), generator=generator)
    rows = [mine for label in range(num_classes) if len(mine := torch.nonzero(labels == label).flatten())]
    first = torch.randperm(len(rows), generator=generator).tolist()  # these classes get one more image where N / C is not whole
    quotas = {kind: len(range(place, len(labels), len(rows))) for place, kind in enumerate(first)}
    drawn = torch.cat([_repeated(mine, quotas[kind], generator) for kind, mine in enumerate(rows)])
    return drawn[torch.randperm(len(drawn), generator=generator)]


def _repeated(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the rows, int64: permutations of all of them, one after the other."""
    rounds = -(-count // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)])[:count]


def spread_rows(count: int, labels: npt.NDArray[np.int64], size_px: int) -> npt.NDArray[np.int64]:
    """Rows of a sample, int64 `[n]`, ascending: from each class its share of the sample, evenly spread over the class.

    The order of the data set does not matter: every tenth image of a data set whose labels repeat 0–9 would be of one class.

    Args:
        count: number of images of 32 px; of larger ones fewer are taken, with as many pixels.
        labels: int64 `[N]`.
        size_px: side of the images.
    """
    count = min(len(labels), max(1, count * _WHOLE_SAMPLE_PX**2 // max(_WHOLE_SAMPLE_PX, size_px) ** 2))
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.arange(count) * len(labels) // count])

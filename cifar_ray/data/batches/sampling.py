"""The order of the training images in an epoch."""

from __future__ import annotations

from collections.abc import Sequence

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


def spread_rows(count: int, shape: Sequence[int]) -> npt.NDArray[np.int64]:
    """Rows of a sample, int64 `[n]`, evenly spread over a data set.

    Args:
        count: number of images of 32 px; of larger ones fewer are taken, with as many pixels.
        shape: number of images, and their side in px.
    """
    size_px = max(_WHOLE_SAMPLE_PX, shape[1])
    count = min(shape[0], max(1, count * _WHOLE_SAMPLE_PX**2 // size_px**2))
    return np.arange(count) * shape[0] // count

"""The order of the training images in an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_ray.config import SamplingName


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

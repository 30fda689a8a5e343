"""Divide pictures with several labels so that each part has its share of every label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Integers = npt.NDArray[np.int64]


def stratify(labels: npt.NDArray[np.uint8], groups: _Integers, shares: Sequence[float], generator: np.random.Generator) -> _Integers:
    """Iterative stratification (Sechidis et al. 2011, algorithm 1): the rarest label is divided first, while there is still a choice.

    Args:
        labels: uint8 `[N, C]`, 0 or 1.
        groups: int64 `[N]`; pictures with equal numbers (near-duplicates) go to the same part.
        shares: fraction of the pictures for each of P parts; they sum to 1.
        generator: decides the order of equal pictures.

    Returns:
        Part of each picture, int64 `[N]`.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    holds = np.zeros((len(sizes), labels.shape[1]), np.int64)  # pictures of each group with each label
    np.add.at(holds, group_of, labels)
    room = np.outer(shares, sizes.sum()).ravel().astype(np.float64)
    wanted = np.outer(shares, holds.sum(axis=0))
    part_of = np.full(len(sizes), -1, np.int64)
    order = generator.permutation(len(sizes))
    left = holds.sum(axis=0)
    while left.any():
        label = int(np.where(left > 0, left, left.max() + 1).argmin())
        for group in order[(part_of[order] < 0) & (holds[order, label] > 0)]:
            _assign(int(group), wanted[:, label], part_of, holds, sizes, room, wanted)
            left = left - holds[group]
    for group in order[part_of[order] < 0]:
        _assign(int(group), room, part_of, holds, sizes, room, wanted)
    result: _Integers = part_of[group_of]
    return result


def _assign(
    group: int,
    need: npt.NDArray[np.float64],
    part_of: _Integers,
    holds: _Integers,
    sizes: _Integers,
    room: npt.NDArray[np.float64],
    wanted: npt.NDArray[np.float64],
) -> None:
    """Give a group to the part with the greatest need; if several parts have equal need, to the one with the most room."""
    part = int(np.lexsort((room, need))[-1])
    part_of[group] = part
    room[part] -= sizes[group]
    wanted[part] -= holds[group]

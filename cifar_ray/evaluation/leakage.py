"""Near-duplicates between two splits, or within one: a test image that was learnt from measures memory, not skill.

Barz & Denzler 2020 ("Do We Train on Test Data?", arXiv 1902.00423) propose candidates by distance in a network's feature space
and let people judge. Here candidates come from embeddings and from small pictures, and pixels judge: the two images are laid over
each other, moved and mirrored, until they agree best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_ray.data.dataset import ImageDataset

Embeddings = npt.NDArray[np.float32]
OnProgress = Callable[[int, int], None]

_COMPARED_PX = 32  # larger pictures are compared at this size
_THUMBNAIL_PX = 8
_NEIGHBOURS = 3  # candidates of each kind for each image
_BLOCK = 500  # images compared with all others at once: 100 MB for 50,000
_REACH_PX = 4
_PAIRS_AT_ONCE = 2000

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Duplicate:
    """Two images that show the same.

    Attributes:
        query: row in the split that was asked about, e.g. test.
        reference: row in the split that was searched, e.g. train.
        similarity: largest correlation of their pixels, `THRESHOLD`…1.
        mirrored: one is the mirror image of the other.
        identical: their pixels are equal.
    """

    query: int
    reference: int
    similarity: float
    mirrored: bool
    identical: bool


def candidates(
    queries: Tensor, references: Tensor, *, same: bool, count: int = _NEIGHBOURS, on_block: Callable[[int], None] = lambda _: None
) -> Tensor:
    """The nearest references of each query, by blocks of a matrix product.

    Args:
        queries: float32 `[N, D]`, rows of length 1.
        references: float32 `[M, D]`, the same.
        same: both are one split: no image is its own neighbour.
        count: neighbours of each.
        on_block: told how many queries are done.

    Returns:
        int64 `[N, min(count, M)]`, or one less neighbour where there is none.
    """
    count = min(count, len(references) - same)
    found = torch.empty(len(queries), max(0, count), dtype=torch.int64)
    for start in range(0, len(queries), _BLOCK):
        cosines = queries[start : start + _BLOCK] @ references.T
        if same:
            rows = torch.arange(len(cosines))
            cosines[rows, rows + start] = -torch.inf
        found[start : start + _BLOCK] = cosines.topk(count, sorted=False).indices
        on_block(len(cosines))
    return found


def small_pictures(images: npt.NDArray[np.uint8], side_px: int) -> Tensor:
    """Images at no more than a size: float32 `[N, 3, s, s]`, 0…1, areas averaged."""
    parts = [torch.zeros(0, 3, side_px, side_px)]
    side_px = min(side_px, images.shape[1])
    for start in range(0, len(images), _PAIRS_AT_ONCE):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + _PAIRS_AT_ONCE])).permute(0, 3, 1, 2).float() / 255
        parts.append(F.interpolate(pixels, size=(side_px, side_px), mode="area"))
    return torch.cat(parts[1:] or parts)


def thumbnails(images: npt.NDArray[np.uint8]) -> Tensor:
    """Pictures of 8×8 px without their brightness and contrast: float32 `[N, 192]`, rows of length 1."""
    flat = small_pictures(images, _THUMBNAIL_PX).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))

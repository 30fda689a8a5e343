"""`Views`: the mean of a network's logits over several views of each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What a view shows: (mirrored, side of its part of the image, corner of that part as a fraction of the free space: top, left)
_ZOOM = 0.875  # as the centre crop of most ImageNet networks
_PARTS = ((1.0, 0.0, 0.0), (_ZOOM, 0.5, 0.5), (_ZOOM, 0.0, 0.0), (_ZOOM, 0.0, 1.0), (_ZOOM, 1.0, 0.0), (_ZOOM, 1.0, 1.0))
MAX_VIEWS = 2 * len(_PARTS)


def view(images: Tensor, number: int, mirror: bool = True) -> Tensor:
    """One view of each image: the whole image, its mirror image, an enlarged central part, its mirror image, then the corners.

    Args:
        images: float `[N, 3, H, W]`.
        number: from 0.
        mirror: whether every second view is mirrored; if not, views show parts only.
    """
    part, mirrored = (number // 2, number % 2 == 1) if mirror else (number, False)
    share, top, left = _PARTS[part]
    if share < 1:
        height, width = images.shape[2:]
        side_y, side_x = round(height * share), round(width * share)
        y, x = round((height - side_y) * top), round((width - side_x) * left)
        images = F.interpolate(images[:, :, y : y + side_y, x : x + side_x], size=(height, width), mode="bilinear", align_corners=False)
    return images.flip(3) if mirrored else images


class Views(nn.Module):
    """The mean of a network's logits over several views of each image; with a linear head, also the mean of its features.

    Args:
        network: from images, float `[N, 3, H, W]`, to logits.
        views: number of views, 2 to `MAX_VIEWS`; half of that without mirroring.
        mirror: as in `view`.
    """

    def __init__(self, network: nn.Module, views: int, mirror: bool = True) -> None:
        super().__init__()
        self.network, self.views, self.mirror = network, views, mirror

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, C]`."""
        logits = [self.network(view(images, number, self.mirror)) for number in range(self.views)]
        return torch.stack(logits).mean(0)

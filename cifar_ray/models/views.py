"""`Views`: the mean of a network's logits over several views of each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.errors import ConfigError

# What a view shows: (mirrored, side of its part of the image, corner of that part as a fraction of the free space: top, left)
_ZOOM = 0.875  # as the centre crop of most ImageNet networks
_PARTS = ((1.0, 0.0, 0.0), (_ZOOM, 0.5, 0.5), (_ZOOM, 0.0, 0.0), (_ZOOM, 0.0, 1.0), (_ZOOM, 1.0, 0.0), (_ZOOM, 1.0, 1.0))
MAX_VIEWS = 2 * len(_PARTS)


def check_views(views: int, mirror: bool) -> None:
    """Check a number of views.

    Raises:
        ConfigError: if there are not so many.
    """
    most = MAX_VIEWS if mirror else len(_PARTS)
    if not 1 <= views <= most:
        raise ConfigError(f"views: expected 1 to {most}{'' if mirror else ' without mirror images'}, got {views}")


def view(images: Tensor, number: int, mirror: bool = True) -> Tensor:
    """One view of each image: the whole image, its mirror image, an enlarged central part, its mirror image, then the corners.

    Args:
        images: float `[N, 3, H, W]`.
        number: from 0.
        mirror: whether every second view is mirrored; if not, views show parts only.
    """
    mirrored, rows, columns = _part(number, mirror, *images.shape[2:])
    shown = images[:, :, rows, columns]
    if shown.shape != images.shape:
        shown = F.interpolate(shown, size=images.shape[2:], mode="bilinear", align_corners=False)
    return shown.flip(3) if mirrored else shown


def _part(number: int, mirror: bool, height: int, width: int) -> tuple[bool, slice, slice]:
    """Whether a view is mirrored, and the rows and columns that it shows."""
    part, mirrored = (number // 2, number % 2 == 1) if mirror else (number, False)
    share, top, left = _PARTS[part]
    height, width = int(height), int(width)  # tensors while torch traces
    side_y, side_x = round(height * share), round(width * share)
    y, x = round((height - side_y) * top), round((width - side_x) * left)
    return mirrored, slice(y, y + side_y), slice(x, x + side_x)


def unview(maps: Tensor, number: int, mirror: bool = True) -> Tensor:
    """Move maps of a view to where their part of the image is; 0 elsewhere.

    Args:
        maps: float `[N, H, W]`.
        number: as in `view`.
        mirror: as in `view`.
    """
    height, width = maps.shape[1:]
    mirrored, rows, columns = _part(number, mirror, height, width)
    maps = maps.flip(2) if mirrored else maps
    size = (rows.stop - rows.start, columns.stop - columns.start)
    inside = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return F.pad(inside, (columns.start, width - columns.stop, rows.start, height - rows.stop))


class Views(nn.Module):
    """The mean of a network's logits over several views of each image; with a linear head, also the mean of its features.

    Args:
        network: from images, float `[N, 3, H, W]`, to logits.
        views: number of views, 2 to `MAX_VIEWS`; half of that without mirroring.
        mirror: as in `view`.

    Raises:
        ConfigError: if there are not so many views.
    """

    def __init__(self, network: nn.Module, views: int, mirror: bool = True) -> None:
        super().__init__()
        check_views(views, mirror)
        self.network, self.views, self.mirror = network, views, mirror

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, C]`."""
        logits = [self.network(view(images, number, self.mirror)) for number in range(self.views)]
        return torch.stack(logits).mean(0)

"""`Views`: the mean of a network's logits over several views of each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.errors import ConfigError

_ZOOM = 0.875  # like the centre crop of most ImageNet networks
# Parts of the image that views show: (side as a fraction of the image, top and left as fractions of the space around the part)
_PARTS = ((1.0, 0.0, 0.0), (_ZOOM, 0.5, 0.5), (_ZOOM, 0.0, 0.0), (_ZOOM, 0.0, 1.0), (_ZOOM, 1.0, 0.0), (_ZOOM, 1.0, 1.0))
MAX_VIEWS = 2 * len(_PARTS)


def check_views(views: int, mirror: bool) -> None:
    """Check a number of views.

    Raises:
        ConfigError: if `views` is below 1, or above `MAX_VIEWS` (half of `MAX_VIEWS` without mirroring).
    """
    most = MAX_VIEWS if mirror else len(_PARTS)
    if not 1 <= views <= most:
        raise ConfigError(f"views: expected 1 to {most}{'' if mirror else ' without mirror images'}, got {views}")


def view(images: Tensor, number: int, mirror: bool = True) -> Tensor:
    """One view of each image, float `[N, 3, H, W]`.

    The views are the whole image, an enlarged central part, and four enlarged corners, each followed by its mirror image.

    Args:
        images: float `[N, 3, H, W]`.
        number: number of the view, from 0.
        mirror: whether every second view is mirrored; if not, there are no mirror images.
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
    height, width = int(height), int(width)  # torch passes tensors while it traces
    side_y, side_x = round(height * share), round(width * share)
    y, x = round((height - side_y) * top), round((width - side_x) * left)
    return mirrored, slice(y, y + side_y), slice(x, x + side_x)


def unview(maps: Tensor, number: int, mirror: bool = True) -> Tensor:
    """Move maps of a view to the position of the view's part in the image; 0 elsewhere.

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
        views: number of views, 1–`MAX_VIEWS`; without mirroring at most half of `MAX_VIEWS`.
        mirror: as in `view`.

    Raises:
        ConfigError: if `views` is out of range.
    """

    def __init__(self, network: nn.Module, views: int, mirror: bool = True) -> None:
        super().__init__()
        check_views(views, mirror)
        self.network, self.views, self.mirror = network, views, mirror

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, C]`, of normalised images, `[N, 3, H, W]`."""
        logits = [self.network(view(images, number, self.mirror)) for number in range(self.views)]
        return torch.stack(logits).mean(0)

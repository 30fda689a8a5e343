"""Changes to images, in batches and on their device.

Random ones are drawn first and applied later, so that what happens to an image depends on the seed, the epoch and
the step, and never on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cifar_ray.config import AugmentationConfig


@dataclass(frozen=True)
class Augmentation:
    """What was drawn for each image of a batch.

    Attributes:
        mirrored: bool `[N]`.
        shift: int64 `[N, 2]`, px down and right.
        cutout_corner: int64 `[N, 2]`, top and left of the square set to the mean colour, may lie outside.
    """

    mirrored: Tensor
    shift: Tensor
    cutout_corner: Tensor

    @classmethod
    def draw(cls, config: AugmentationConfig, size: int, image_size_px: int, generator: torch.Generator) -> Self:
        """Draws for `size` images; `mirrored` is a fair coin unless flipping is off.

        Args:
            config: which changes, and how strong.
            size: number of images.
            image_size_px: side of the images.
            generator: the only source of randomness, on the CPU.
        """
        coins = torch.randint(0, 2, (size,), generator=generator, dtype=torch.bool)
        reach = config.translate_px
        shift = torch.randint(-reach, reach + 1, (size, 2), generator=generator)
        half = config.cutout_px // 2
        corner = torch.randint(-half, image_size_px - half, (size, 2), generator=generator)
        return cls(coins if config.flip != "none" else torch.zeros_like(coins), shift, corner)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.mirrored[part], self.shift[part], self.cutout_corner[part])

    def to(self, device: torch.device) -> Self:
        """The same draws on another device."""
        return type(self)(*(drawn.to(device, non_blocking=True) for drawn in (self.mirrored, self.shift, self.cutout_corner)))


def shift_and_mirror(images: Tensor, indices: Tensor, drawn: Augmentation) -> Tensor:
    """Gathers images while shifting (border filled by reflection) and mirroring them, in one pass over memory.

    Args:
        images: uint8 `[M, H, W, 3]`, the whole data set.
        indices: int64 `[N]`, on the same device.
        drawn: for these N images.

    Returns:
        uint8 `[N, H, W, 3]`.
    """
    height, width = images.shape[1:3]
    rows = _reflect(torch.arange(height, device=images.device) - drawn.shift[:, :1], height)
    columns = _reflect(torch.arange(width, device=images.device) - drawn.shift[:, 1:], width)
    columns = torch.where(drawn.mirrored[:, None], columns.flip(1), columns)
    return images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Folds positions in -size…2·size back into 0…size-1, the border pixel itself not repeated."""
    last = size - 1
    return last - (last - positions.abs()).abs()


def cutout(images: Tensor, corner: Tensor, side_px: int) -> Tensor:
    """Sets a square of each image to zero, in place: the mean colour of normalised images (DeVries & Taylor 2017, arXiv 1708.04552).

    Args:
        images: normalised, `[N, 3, H, W]`.
        corner: int64 `[N, 2]`, top and left of the square, which may reach outside.
        side_px: side of the square; 0 changes nothing.
    """
    if side_px == 0:
        return images
    rows = torch.arange(images.shape[2], device=images.device) - corner[:, :1]
    columns = torch.arange(images.shape[3], device=images.device) - corner[:, 1:]
    inside = ((rows >= 0) & (rows < side_px))[:, :, None] & ((columns >= 0) & (columns < side_px))[:, None, :]
    return images.masked_fill_(inside[:, None], 0)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Brings channels to mean 0 and standard deviation 1. Training and serving both call this one.

    Args:
        images: uint8 `[N, H, W, 3]`.
        mean: of each channel, in 0…1.
        std: the same for the standard deviation.
        dtype: of the result; computed in float32.

    Returns:
        `dtype`, `[N, 3, H, W]`, channels last in memory.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    return torch.addcmul(offset, images.float(), scale).to(dtype).permute(0, 3, 1, 2)

"""Image transforms for batches on their device; `augmentation.py` and `device_draws.py` draw the random parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)


def shift_and_mirror(images: Tensor, indices: Tensor, shift: Tensor, mirrored: Tensor, reach_px: int) -> Tensor:
    """Gather images while shifting (reflection padding) and mirroring them.

    Copying whole rows takes less than half the time of gathering single pixels on a CPU.

    Args:
        images: uint8 `[M, H, W, 3]`, the whole data set.
        indices: int64 `[N]`, on the same device.
        shift: int64 `[N, 2]`, px down and right.
        mirrored: bool `[N]`.
        reach_px: maximum shift.

    Returns:
        uint8 `[N, H, W, 3]`.
    """
    height, width = images.shape[1:3]
    rows = indices[:, None] * height + _reflect(torch.arange(height, device=images.device) - shift[:, :1], height)
    strips = images.reshape(-1, 3 * width).index_select(0, rows.flatten()).view(-1, width, 3)
    both = strips.new_empty(2, len(strips), width + 2 * reach_px, 3)  # each row with its borders, unchanged and mirrored
    wide = both[0]
    wide[:, reach_px : reach_px + width] = strips
    wide[:, :reach_px] = strips[:, 1 : reach_px + 1].flip(1)
    wide[:, reach_px + width :] = strips[:, width - 1 - reach_px : width - 1].flip(1)
    both[1] = wide.flip(1)
    first = reach_px + torch.where(mirrored, shift[:, 1], -shift[:, 1]) + mirrored * wide.shape[0] * wide.shape[1]
    first = first[:, None] + torch.arange(len(strips), device=images.device).view(-1, height) * wide.shape[1]
    return both.view(-1).unfold(0, 3 * width, 1).index_select(0, 3 * first.flatten()).view(-1, height, width, 3)


def turn(images: Tensor, indices: Tensor, shift: Tensor, mirrored: Tensor, angle: Tensor | None, crop: Tensor | None = None) -> Tensor:
    """Gather images while cropping, shifting, mirroring and then rotating them about their centre (bilinear, reflection padding).

    Args:
        images: uint8 `[M, H, W, 3]`, square.
        indices: int64 `[N]`.
        shift: int64 `[N, 2]`, px down and right.
        mirrored: bool `[N]`.
        angle: float32 `[N]`, radians, counterclockwise; `None` for no rotation.
        crop: int64 `[N, 4]`, top, left, height and width of the rectangle to enlarge; `None` for the whole images.

    Returns:
        uint8 `[N, H, W, 3]`; each channel is a contiguous plane in memory.
    """
    half = (images.shape[1] - 1) / 2
    sign = torch.where(mirrored, -1.0, 1.0)
    angle = torch.zeros_like(sign) if angle is None else angle
    cos, sin = angle.cos(), angle.sin()
    # Source position of each pixel: 0 is the centre of the image, ±1 are the centres of the border pixels.
    columns = torch.stack((sign * cos, -sign * sin, -shift[:, 1] / half), 1)
    rows = torch.stack((sin, cos, -shift[:, 0] / half), 1)
    grid = F.affine_grid(torch.stack((columns, rows), 1), [len(indices), 3, *images.shape[1:3]], align_corners=True)
    if crop is not None:
        grid = _into_crops(grid, crop, images.shape[1])
    pixels = images.index_select(0, indices).permute(0, 3, 1, 2).contiguous().float()
    turned = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return turned.round_().to(torch.uint8).permute(0, 2, 3, 1)


def _into_crops(grid: Tensor, crop: Tensor, side_px: int) -> Tensor:
    """Map source positions in enlarged crops to positions in the images.

    The result equals resizing the crop alone: pixels are areas (`align_corners=False`), and pixels outside the crop are not used.

    Args:
        grid: `[N, H, W, 2]`, x and y; ±1 are the centres of the border pixels.
        crop: int64 `[N, 4]`, top, left, height and width.
        side_px: height and width of the images.
    """
    half = (side_px - 1) / 2
    corner, extent = (part.flip(1).view(-1, 1, 1, 2) for part in crop.float().chunk(2, dim=1))  # x comes first in a grid
    period = (grid + 1).remainder(4)  # reflection at ±1, which a rotation or a shift needs
    position = torch.minimum(period, 4 - period) * half
    inside = torch.minimum(((position + 0.5) * (extent / side_px) - 0.5).clamp_min(0), extent - 1)
    mapped: Tensor = (corner + inside) / half - 1
    return mapped


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Reflect positions from -size to 2·size into 0 to size-1, without repeating the border pixel."""
    last = size - 1
    return last - (last - positions.abs()).abs()


@cache
def yiq_matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices from RGB to YIQ and back, float32 `[3, 3]`; copied to a GPU only once."""
    return _TO_YIQ.to(device), _FROM_YIQ.to(device)


def jitter(planes: Tensor, colour: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and then hue of each image in one affine map of its colours.

    Contrast scales the distance from the image's mean grey, saturation the distance from each pixel's grey. Hue rotates about the grey
    axis of the YIQ colour space, which is a linear map (Haeberli 1993, Matrix Operations for Image Processing). Values are not clipped
    between the four changes.

    Args:
        planes: float32 `[N, 3, H, W]`.
        colour: float32 `[N, 4]`, three factors and an angle in radians.

    Returns:
        As `planes`; values may be outside the range of the input.
    """
    brightness, contrast, saturation, hue = colour.unbind(1)
    to_yiq, from_yiq = yiq_matrices(planes.device)
    in_yiq = torch.zeros(len(colour), 3, 3, device=planes.device)
    in_yiq[:, 0, 0] = 1
    in_yiq[:, 1, 1] = in_yiq[:, 2, 2] = saturation * hue.cos()
    in_yiq[:, 2, 1] = saturation * hue.sin()
    in_yiq[:, 1, 2] = -in_yiq[:, 2, 1]
    mean_grey = (planes.mean((2, 3)) * to_yiq[0]).sum(1)  # a matrix product would round differently for other batch sizes
    gain = (brightness * contrast).view(-1, 1, 1)
    lift = (brightness * (1 - contrast) * mean_grey).view(-1, 1, 1)
    return torch.baddbmm(lift, from_yiq @ in_yiq @ to_yiq * gain, planes.flatten(2)).view_as(planes)


def inside(boxes: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Mask of each image's rectangle: bool `[N, C, H, W]`, channels last in memory.

    Args:
        boxes: int64 `[N, 4]`, top, left, bottom and right; may extend beyond the image.
        channels: channels of the images.
        height: height of the images, px.
        width: width of the images, px.
    """
    top, left, bottom, right = boxes.view(-1, 4, 1).unbind(1)
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device).repeat_interleave(channels)
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    mask = down.view(torch.uint8)[:, :, None] & across.view(torch.uint8)[:, None]  # on a CPU, eight times as fast as on booleans
    return mask.view(torch.bool).view(-1, height, width, channels).permute(0, 3, 1, 2)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Set a rectangle of each image to zero, the mean colour of normalised images, in place.

    Cutout (DeVries & Taylor 2017, arXiv 1708.04552) and random erasing (Zhong et al. 2017, arXiv 1708.04896) draw different rectangles.

    Args:
        images: normalised, `[N, 3, H, W]`.
        boxes: int64 `[N, 4]`, as for `inside`.
    """
    return images.masked_fill_(inside(boxes, *images.shape[1:]), 0)


def as_fractions(labels: Tensor, num_classes: int) -> Tensor:
    """Weight of each class, float32 `[N, C]`, of labels, int64 `[N]` or uint8 `[N, C]`."""
    return labels.float() if labels.ndim == 2 else F.one_hot(labels, num_classes).float()


def mix(images: Tensor, labels: Tensor, kept: Tensor | None, patch: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mix each image except the last with the next one, and their labels in the same proportion.

    Args:
        images: `[N + 1, 3, H, W]`.
        labels: weights of the classes, float32 `[N + 1, C]`.
        kept: float32 `[N]`, weight of the image itself (mixup), or `None`.
        patch: int64 `[N, 4]`, rectangle that shows the next image (cutmix), or `None`.

    Returns:
        Images `[N, 3, H, W]` and labels `[N, C]`; the weight of a label is the mean weight over the pixels.
    """
    mixed, following = images[:-1], images[1:]
    share = torch.ones(len(mixed), 1, device=images.device)
    if kept is not None:
        mixed = torch.lerp(following.float(), mixed.float(), kept.view(-1, 1, 1, 1)).to(images.dtype)
        share = kept[:, None]
    if patch is not None:
        mixed = torch.where(inside(patch, *images.shape[1:]), following, mixed)
        area = (patch[:, 2:] - patch[:, :2]).prod(1, keepdim=True)
        share = share * (1 - area / images[0, 0].numel())
    return mixed, torch.lerp(labels[1:], labels[:-1], share)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Normalize channels to mean 0 and standard deviation 1. Training and serving both call this function.

    Args:
        images: uint8, or float32 in 0–255, `[N, H, W, 3]`.
        mean: mean of each channel, 0–1.
        std: standard deviation of each channel, 0–1.
        dtype: dtype of the result; the computation is in float32.

    Returns:
        `dtype`, `[N, 3, H, W]`, channels last in memory.
    """
    return normalize_by(images, channel_constants(mean, std, images.shape[2], images.device), dtype)


def channel_constants(mean: Sequence[float], std: Sequence[float], width_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and offset for `normalize_by`, float32 `[3 · width_px]`, repeated for a whole row: a CPU loops slowly over only 3 channels."""
    scale = torch.tensor([1 / (255 * s) for s in std]).repeat(width_px)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).repeat(width_px)
    return scale.to(device), offset.to(device)


def normalize_by(images: Tensor, constants: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """As `normalize`, with constants from `channel_constants`."""
    scale, offset = constants
    return torch.addcmul(offset, images.flatten(2).float(), scale).to(dtype).view(images.shape).permute(0, 3, 1, 2)

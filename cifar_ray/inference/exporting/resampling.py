"""Resize pictures with Pillow's method inside an exported graph: `data.decode.fit` in tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import PIL
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.config import ResizePolicy

# As in Pillow: 8-bit resampling (src/libImaging/Resample.c, Reduce.c), and Image.resize with a reducing_gap of 3, as in `fit`.
_COEFFICIENT = 2**22
_RECIPROCAL = 2**24
_GAP = 3
_MAY_START_WITH_COLUMNS = int(PIL.__version__.partition(".")[0]) >= 13
_MARGIN = 1.5  # support of the bicubic filter, less half a pixel


class Square(nn.Module):
    """Makes pictures of any size square, with the same pixels as `data.decode.fit`.

    The sides are computed in the graph, so one file takes every size. Large pictures are averaged in blocks. Then two matrix products
    resample rows and columns; each result is rounded to 8 bits. All sums are whole numbers in float64, so they are exact.

    From release 13 on, Pillow resamples columns before rows if the height shrinks by more than twice as many pixels as the width
    (python-pillow/Pillow#9549). The graph has the order of the installed release.

    Args:
        size_px: side of the result.
        policy: policy for other aspect ratios, see `fit`.
    """

    def __init__(self, size_px: int, policy: ResizePolicy) -> None:
        super().__init__()
        self.size_px, self.policy = size_px, policy

    def forward(self, images: Tensor) -> Tensor:
        """Square pictures, uint8 `[N, S, S, 3]`, from pictures, uint8 `[N, H, W, 3]`."""
        height, width = (torch.full((), side, dtype=torch.float64) for side in images.shape[1:3])
        rows, columns = (self._axis(side, torch.minimum(height, width), torch.maximum(height, width)) for side in (height, width))
        planes = _average(images.permute(0, 3, 1, 2), rows, columns)
        down = _coefficients(rows, self.size_px, planes.shape[2])
        across = _coefficients(columns, self.size_px, planes.shape[3]).T
        if _MAY_START_WITH_COLUMNS:
            lost = rows.length - rows.result
            starts_with_columns = (lost > 0) & (lost > 2 * (columns.length - columns.result))
            planes = torch.cond(starts_with_columns, _columns_first, _rows_first, (planes, down, across))
        else:
            planes = _rows_first(planes, down, across)
        return planes.permute(0, 2, 3, 1).to(torch.uint8)

    def _axis(self, side: Tensor, shorter: Tensor, longer: Tensor) -> _Axis:
        shown = shorter if self.policy == "crop" else side
        start = (side - shown) / 2
        result = torch.full_like(side, self.size_px)
        if self.policy == "pad":  # tensor ÷ tensor: dividing a number would multiply it by a rounded reciprocal
            result = (side * (result / longer)).round().clamp(min=1)
        block = (shown / result / _GAP).floor().clamp(min=1)
        margin = _MARGIN * shown / result
        first = torch.where(block > 1, (start - margin).floor().clamp(min=0), 0)
        end = torch.where(block > 1, torch.minimum((start + shown + margin).ceil(), side), side)
        return _Axis(start, shown, result, block, first, end, ((end - first) / block).ceil())


@dataclass(frozen=True)
class _Axis:
    """Resampling of one side; each attribute is a float64 scalar, px.

    Attributes:
        start: position at which the part to show starts.
        shown: length of the part to show.
        result: length of the result, at most the side of the square.
        block: length of the blocks that are averaged first; 1 for no averaging.
        first: first pixel of the first block.
        end: pixel after the last block; the last block may be shorter.
        length: number of blocks.
    """

    start: Tensor
    shown: Tensor
    result: Tensor
    block: Tensor
    first: Tensor
    end: Tensor
    length: Tensor


def _average(planes: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Means of blocks, float64 `[N, 3, H', W']`; like Pillow's `reduce`, it multiplies by a rounded reciprocal of the pixel count."""
    sums, heights = _sum_blocks(planes, rows, 2)
    sums, widths = _sum_blocks(sums, columns, 3)
    counts = heights[:, None] * widths
    share = (_RECIPROCAL / counts.float()).floor().double() / _RECIPROCAL
    return ((sums.double() + (counts // 2)) * share).floor()


def _sum_blocks(planes: Tensor, axis: _Axis, dim: int) -> tuple[Tensor, Tensor]:
    """Sums over the blocks of one dimension, int32, and the number of pixels of each block."""
    sizes: list[Any] = [size.long().item() for size in (axis.block, axis.length, axis.first, axis.end)]  # symbols during an export
    length, count, first, end = sizes
    shown = planes.narrow(dim, first, end - first)
    padded = F.pad(shown, (0, 0) * (3 - dim) + (0, count * length - (end - first)))
    blocks: Tensor = padded.unflatten(dim, (count, length))  # type: ignore[no-untyped-call]
    lengths = (axis.end - axis.first - torch.arange(count) * axis.block).clamp(max=axis.block)
    return blocks.sum(dim + 1, dtype=torch.int32), lengths


def _coefficients(axis: _Axis, size_px: int, length: int) -> Tensor:
    """Integer coefficients of the bicubic filter (a = -0.5), float64 `[size_px, length]`; rows outside the result are 0."""
    low, high = (((edge - axis.first) / axis.block).float() for edge in (axis.start, axis.start + axis.shown))
    scale = (high - low).double() / axis.result
    place = torch.arange(size_px, dtype=torch.float64)[:, None] - ((size_px - axis.result) / 2).floor()
    centres = low.double() + (place + 0.5) * scale
    distance = ((torch.arange(length, dtype=torch.float64) + 0.5 - centres) / scale.clamp(min=1)).abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    weights = weights / weights.sum(1, keepdim=True)
    whole = weights.sign() * (weights.abs() * _COEFFICIENT + 0.5).floor()
    return torch.where((place >= 0) & (place < axis.result), whole, 0)


def _rows_first(planes: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return _rounded(down @ _rounded(planes @ across))


def _columns_first(planes: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return _rounded(_rounded(down @ planes) @ across)


def _rounded(sums: Tensor) -> Tensor:
    return (sums / _COEFFICIENT + 0.5).floor().clamp(0, 255)

"""RandAugment and AutoAugment for batches: each image has its own operations and magnitudes.

RandAugment: Cubuk et al. 2020 (arXiv 1909.13719); AutoAugment: Cubuk et al. 2019 (arXiv 1805.09501). Draws and operations follow
torchvision's transforms of these names on one uint8 image. Similar operations of different images run together: one gather for all that
move pixels, one weighted sum for all that blend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_ray.config import AugmentationConfig

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
)
_CODE = {name: code for code, name in enumerate(OPERATIONS)}
_OF_RANDAUGMENT = len(OPERATIONS) - 1  # all but Invert

AUTOAUGMENT_LEVELS, RANDAUGMENT_LEVELS = 10, 31

# Cubuk et al. 2019 (arXiv 1805.09501), table 7: two operations, each with its probability and its level, 0–9
AUTOAUGMENT_CIFAR = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


def draw_operations(config: AugmentationConfig, size: int, image_size_px: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw the operations of `config.policy` for `size` images.

    Returns:
        Codes, int64 `[N, K]`, and values, float32 `[N, K]`, as `apply_operations` takes them.
    """
    if config.policy == "randaugment":
        codes = rng.integers(0, _OF_RANDAUGMENT, (size, config.policy_ops))
        strengths = np.full(codes.shape, config.policy_magnitude / (RANDAUGMENT_LEVELS - 1))
    else:
        chosen = rng.integers(0, len(AUTOAUGMENT_CIFAR), size)
        table = np.array([[(_CODE[name], chance, level) for name, chance, level in pair] for pair in AUTOAUGMENT_CIFAR])[chosen]
        codes = np.where(rng.random((size, 2)) < table[..., 1], table[..., 0], 0).astype(np.int64)
        strengths = table[..., 2] / (AUTOAUGMENT_LEVELS - 1)
    values = operation_values(codes, strengths * rng.choice((-1.0, 1.0), codes.shape), image_size_px)
    return torch.from_numpy(codes), torch.from_numpy(values.astype(np.float32))


def choices_of_policy(
    config: AugmentationConfig, image_size_px: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Tables of everything that `config.policy` can choose.

    Returns:
        autoaugment: probabilities `[P, 2]`, codes `[P, 2]` and values `[P, 2, 2]` of each pair of operations; randaugment: ones `[P]`,
        codes `[P]` and values `[P, 2]` of each operation. The last axis of the values is the sign of the magnitude, - and then +.
    """
    if config.policy == "randaugment":
        codes = np.arange(_OF_RANDAUGMENT)
        chances, strengths = np.ones(len(codes)), np.full(len(codes), config.policy_magnitude / (RANDAUGMENT_LEVELS - 1))
    else:
        table = np.array([[(_CODE[name], chance, level) for name, chance, level in pair] for pair in AUTOAUGMENT_CIFAR])
        codes, chances, strengths = table[..., 0].astype(np.int64), table[..., 1], table[..., 2] / (AUTOAUGMENT_LEVELS - 1)
    values = np.stack([operation_values(codes, sign * strengths, image_size_px) for sign in (-1, 1)], axis=-1)
    return chances.astype(np.float32), codes, values.astype(np.float32)


def operation_values(codes: npt.NDArray[np.int64], strengths: npt.NDArray[np.float64], image_size_px: int) -> npt.NDArray[np.float64]:
    """Convert magnitudes from -1 to 1 to the argument of each operation; the sign matters only for operations with two directions."""
    sized = np.abs(strengths)
    values = np.zeros(codes.shape)
    for names, meant in (
        (("ShearX", "ShearY"), 0.3 * strengths),
        (("TranslateX", "TranslateY"), np.trunc(150 / 331 * image_size_px * strengths)),
        (("Rotate",), 30 * strengths),
        (("Brightness", "Color", "Contrast", "Sharpness"), 1 + 0.9 * strengths),
        (("Posterize",), 8 - np.round(4 * sized)),
        (("Solarize",), 255 * (1 - sized)),
    ):
        values = np.where(np.isin(codes, [_CODE[name] for name in names]), meant, values)
    return values


def apply_operations(images: Tensor, codes: Tensor, values: Tensor) -> Tensor:
    """Apply to each image its operations in turn.

    Args:
        images: uint8 `[N, 3, H, W]`; changed in place.
        codes: int64 `[N, K]`.
        values: float32 `[N, K]`.

    Returns:
        The images.
    """
    for code, value in zip(codes.unbind(1), values.unbind(1), strict=True):
        for first, last, change in _GROUPS:
            rows = ((code >= _CODE[first]) & (code <= _CODE[last])).nonzero()[:, 0]
            if len(rows):
                images[rows] = change(images[rows], value[rows, None, None, None], code[rows, None, None, None])
    return images


def _warp(images: Tensor, amount: Tensor, code: Tensor) -> Tensor:
    """Shear from the top left corner, translate or rotate images: nearest pixel, black outside."""
    height, width = images.shape[2:]
    of = {
        name: torch.where(code == _CODE[name], amount, 0).view(-1, 1, 1)
        for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    }
    angle = of["Rotate"].deg2rad()
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    columns = angle.cos() * x - angle.sin() * y + of["ShearX"] * (y + height / 2) - of["TranslateX"]
    rows = angle.sin() * x + angle.cos() * y + of["ShearY"] * (x + width / 2) - of["TranslateY"]
    columns, rows = (columns + (width - 1) / 2).round_(), (rows + (height - 1) / 2).round_()
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    source = (rows.clamp_(0, height - 1) * width + columns.clamp_(0, width - 1)).long()
    moved = images.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)
    return moved.masked_fill_(outside[:, None], 0)


def _blend(images: Tensor, factor: Tensor, code: Tensor) -> Tensor:
    """Blend images with black (Brightness), their grey (Color), their mean grey (Contrast) or a smoothed copy (Sharpness)."""
    pixels = images.float()
    weights = torch.tensor([0.2989, 0.587, 0.114], device=images.device).view(3, 1, 1)
    grey = (pixels * weights).sum(1, keepdim=True).floor_()
    other = grey.expand_as(pixels) * (code == _CODE["Color"])
    other += grey.mean((2, 3), keepdim=True) * (code == _CODE["Contrast"])
    sharpened = (code == _CODE["Sharpness"]).flatten().nonzero()[:, 0]
    other[sharpened] = _smooth(pixels[sharpened])
    return pixels.mul_(factor).add_(other.mul_(1 - factor)).clamp_(0, 255).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """Pillow's SMOOTH filter; it does not change border pixels."""
    smoothed = images.clone()
    inner = smoothed[:, :, 1:-1, 1:-1]
    inner.mul_(4).add_(F.avg_pool2d(images, 3, stride=1), alpha=9).div_(13).round_()
    return smoothed


def _posterize(images: Tensor, bits: Tensor, _: Tensor) -> Tensor:
    step = 2 ** (8 - bits.to(torch.int32))
    return (images // step * step).to(torch.uint8)


def _solarize(images: Tensor, threshold: Tensor, _: Tensor) -> Tensor:
    return torch.where(images >= threshold, 255 - images, images)


def _autocontrast(images: Tensor, _: Tensor, __: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import autocontrast  # this import takes a second, and only policies need it

    return cast(Tensor, autocontrast(images))


def _equalize(images: Tensor, _: Tensor, __: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import equalize

    return cast(Tensor, equalize(images))


def _invert(images: Tensor, _: Tensor, __: Tensor) -> Tensor:
    return 255 - images


# Operations from the first to the last name run together: images uint8 `[n, 3, H, W]`, values and codes `[n, 1, 1, 1]` → new images
_GROUPS: tuple[tuple[str, str, Callable[[Tensor, Tensor, Tensor], Tensor]], ...] = (
    ("ShearX", "Rotate", _warp),
    ("Brightness", "Sharpness", _blend),
    ("Posterize", "Posterize", _posterize),
    ("Solarize", "Solarize", _solarize),
    ("AutoContrast", "AutoContrast", _autocontrast),
    ("Equalize", "Equalize", _equalize),
    ("Invert", "Invert", _invert),
)

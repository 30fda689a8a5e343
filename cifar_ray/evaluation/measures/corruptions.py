"""Image corruptions for robustness tests: noise, blur, weather, camera and file artefacts, 12 types at 5 severities.

Types and severities follow CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261); lengths are scaled from 32 px to the size of
the images. The corrupted images are computed here in batches: they have the same types and strengths as the published files, but other
pixels. Frost, snow and glass blur are left out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Images = npt.NDArray[np.uint8]
_Corruption = Callable[[Tensor, int, torch.Generator], Tensor]

LEVELS = 5
_PUBLISHED_SIDE_PX = 32
_MIN_TAP_WEIGHT = 1e-3  # taps of a blur with a smaller weight are not visible


def corrupt(images: Images, kind: str, level: int, seed: int) -> Images:
    """Corrupt a batch of images.

    Args:
        images: uint8 `[N, S, S, 3]`.
        kind: one of `CORRUPTIONS`.
        level: severity, 1 (mild) to 5 (severe).
        seed: the same seed and batch give the same result.

    Returns:
        uint8 `[N, S, S, 3]`.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    corrupted = CORRUPTIONS[kind](pixels, level - 1, generator)
    result: Images = (corrupted.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return result


def _gaussian_noise(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[level] * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    photons = (500, 250, 100, 75, 50)[level]
    return torch.poisson(x * photons, generator) / photons


def _impulse_noise(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    drawn = torch.rand(x.shape, generator=generator)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn < share, 1.0, x))


def _gaussian_blur(x: Tensor, level: int, _: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur  # the import takes seconds, and only this corruption needs it

    sigma_px = _scaled((0.4, 0.6, 0.7, 0.8, 1.0)[level], x)
    blurred: Tensor = gaussian_blur(x, [2 * math.ceil(3 * sigma_px) + 1] * 2, [sigma_px] * 2)
    return blurred


def _motion_blur(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """One-sided blur with decreasing weights, as in ImageMagick; each picture has its own direction within 45° of the horizontal."""
    sigma_px = _scaled((1.0, 1.5, 2.0, 2.0, 2.5)[level], x)
    angles = (torch.rand(len(x), generator=generator) - 0.5) * math.pi / 2
    step = torch.stack((angles.cos(), angles.sin()), dim=1) * (2 / x.shape[3])  # one pixel, in coordinates from -1 to 1
    taps = torch.arange(math.ceil(4 * sigma_px))
    weights = torch.exp(-(taps**2) / (2 * sigma_px**2))
    weights = weights[weights > _MIN_TAP_WEIGHT]
    moved = [weight * _sample(x, 1.0, step * tap) for tap, weight in enumerate(weights)]
    return torch.stack(moved).sum(0) / weights.sum()


def _zoom_blur(x: Tensor, level: int, _: torch.Generator) -> Tensor:
    zooms = [1 + 0.01 * step for step in range((6, 11, 16, 21, 26)[level])]
    still = torch.zeros(len(x), 2)
    total = x.clone()
    for zoom in zooms:
        total += _sample(x, 1 / zoom, still)
    return total / (len(zooms) + 1)


def _fog(x: Tensor, level: int, generator: torch.Generator) -> Tensor:
    density, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[level]
    side, cells, weight = x.shape[2], 2, 1.0
    clouds = torch.zeros(len(x), 1, side, side)
    while cells <= side:
        octave = torch.rand(len(x), 1, cells, cells, generator=generator)
        clouds += weight * F.interpolate(octave, size=(side, side), mode="bilinear", align_corners=True)
        cells, weight = cells * 2, weight / decay
    low, high = clouds.amin((1, 2, 3), keepdim=True), clouds.amax((1, 2, 3), keepdim=True)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + density * (clouds - low) / (high - low)) * brightest / (brightest + density)


def _brightness(x: Tensor, level: int, _: torch.Generator) -> Tensor:
    value = x.amax(1, keepdim=True)  # the V of HSV
    brighter = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[level]).clamp_max(1)
    return torch.where(value > 0, x * brighter / value.clamp_min(1e-6), brighter)


def _contrast(x: Tensor, level: int, _: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[level]


def _saturate(x: Tensor, level: int, _: torch.Generator) -> Tensor:
    factor, offset = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[level]
    value = x.amax(1, keepdim=True)
    saturation = (value - x.amin(1, keepdim=True)) / value.clamp_min(1e-6)
    changed = (saturation * factor + offset).clamp(0, 1)
    return value - (value - x) * torch.where(saturation > 0, changed / saturation.clamp_min(1e-6), 1.0)


def _pixelate(x: Tensor, level: int, _: torch.Generator) -> Tensor:
    side = x.shape[2]
    fewer = max(1, int(side * (0.95, 0.9, 0.85, 0.75, 0.65)[level]))
    return F.interpolate(F.interpolate(x, size=(fewer, fewer), mode="area"), size=(side, side), mode="nearest-exact")


def _jpeg(x: Tensor, level: int, _: torch.Generator) -> Tensor:
    quality = (80, 65, 58, 50, 40)[level]
    pixels = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    decoded = np.empty_like(pixels)
    for row, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded[row] = np.asarray(Image.open(file))
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).float() / 255


CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian noise": _gaussian_noise,
    "shot noise": _shot_noise,
    "impulse noise": _impulse_noise,
    "gaussian blur": _gaussian_blur,
    "motion blur": _motion_blur,
    "zoom blur": _zoom_blur,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturate,
    "pixelation": _pixelate,
    "jpeg": _jpeg,
}


def _scaled(length_px: float, x: Tensor) -> float:
    return length_px * x.shape[2] / _PUBLISHED_SIDE_PX


def _sample(x: Tensor, scale: float, shift: Tensor) -> Tensor:
    """Sample each picture at `scale` times its coordinates plus a shift, `[N, 2]` in half widths; border pixels repeat outside."""
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

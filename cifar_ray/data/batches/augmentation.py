"""Random augmentation of training images.

All parameters of a global batch are drawn first. Each worker then applies the parameters of its own images on its device. So the
augmentation of an image depends on seed, epoch, step and position in the global batch, and never on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar_ray.config import AugmentationConfig
from cifar_ray.data.batches.policy import apply_operations, draw_operations
from cifar_ray.data.batches.transforms import as_fractions, erase, jitter, mix, shift_and_mirror, turn

ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 1 / 0.3)  # Zhong et al. 2017 (arXiv 1708.04896); torchvision's defaults
CROP_RATIO, CROP_DRAWS = (3 / 4, 4 / 3), 10  # width / height; Szegedy et al. 2014 (arXiv 1409.4842); torchvision's defaults
NOISE_WINDOWS = 1 << 20  # possible offsets of an image's noise in the noise table


@dataclass(frozen=True)
class Augmentation:
    """Random parameters of the augmentation of each image in a batch; `None` for an augmentation that is off.

    Attributes:
        mirrored: bool `[N]`.
        shift: int64 `[N, 2]`, px down and right.
        cutout_corner: int64 `[N, 2]`, top and left of the square set to the mean colour; it may extend beyond the image.
        angle: float32 `[N]`, radians, counterclockwise.
        codes: int64 `[N, K]`, the policy's operations: indices into `policy.OPERATIONS`.
        values: float32 `[N, K]`, the arguments of the operations.
        colour: float32 `[N, 4]`, factors of brightness, contrast and saturation; hue shift in radians.
        noise: int64 `[N]`, offset of the image's noise in the noise table.
        erased: int64 `[N, 4]`, top, left, bottom and right of the rectangle set to the mean colour.
        kept: float32 `[N]`, weight of the image in its blend with the next (mixup).
        patch: int64 `[N, 4]`, top, left, bottom and right of the rectangle that shows the next image (cutmix).
        crop: int64 `[N, 4]`, top, left, height and width of the rectangle that is enlarged to the whole image.
    """

    mirrored: Tensor
    shift: Tensor
    cutout_corner: Tensor
    angle: Tensor | None = None
    codes: Tensor | None = None
    values: Tensor | None = None
    colour: Tensor | None = None
    noise: Tensor | None = None
    erased: Tensor | None = None
    kept: Tensor | None = None
    patch: Tensor | None = None
    crop: Tensor | None = None

    @classmethod
    def draw(cls, config: AugmentationConfig, size: int, image_size_px: int, generator: torch.Generator) -> Self:
        """Draw the parameters for `size` images; `mirrored` has probability 0.5 unless flipping is off.

        Args:
            config: augmentations and their strengths.
            size: number of images.
            image_size_px: side of the images.
            generator: the only source of randomness, on the CPU.
        """
        coins = torch.randint(0, 2, (size,), generator=generator, dtype=torch.bool)
        reach = config.translate_px
        shift = torch.randint(-reach, reach + 1, (size, 2), generator=generator)
        half = config.cutout_px // 2
        corner = torch.randint(-half, image_size_px - half, (size, 2), generator=generator)
        more = _draw_more(config, size, image_size_px, int(torch.randint(1 << 62, (), generator=generator)))
        return cls(coins if config.flip != "none" else torch.zeros_like(coins), shift, corner, **more)

    def __getitem__(self, part: slice | Tensor) -> Self:
        return self._each(lambda drawn: drawn[part])

    def tensors(self) -> list[Tensor]:
        """All parameters that are not `None`, in the order of the attributes."""
        return [drawn for field in fields(self) if (drawn := getattr(self, field.name)) is not None]

    def clone(self) -> Self:
        """A copy of all parameters."""
        return self._each(torch.clone)

    def to(self, device: torch.device) -> Self:
        """The same parameters on another device."""
        return self._each(lambda drawn: drawn.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        drawn = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(None if one is None else change(one) for one in drawn))  # type: ignore[arg-type]


def _draw_more(config: AugmentationConfig, size: int, image_size_px: int, seed: int) -> dict[str, Tensor]:
    """Draw each augmentation from its own random stream: switching one on or off does not change the draws of the others."""

    def stream(number: int) -> np.random.Generator:
        return np.random.default_rng((seed, number))

    drawn: dict[str, Tensor] = {}
    if config.rotate_deg:
        drawn["angle"] = _float(np.radians(stream(0).uniform(-config.rotate_deg, config.rotate_deg, size)))
    if config.policy != "none":
        drawn["codes"], drawn["values"] = draw_operations(config, size, image_size_px, stream(1))
    reach = np.array((config.brightness, config.contrast, config.saturation, config.hue))
    if reach.any():
        drawn["colour"] = _float((1, 1, 1, 0) + stream(2).uniform(-1, 1, (size, 4)) * reach * (1, 1, 1, 2 * np.pi))
    if config.noise_std:
        drawn["noise"] = torch.from_numpy(stream(3).integers(0, NOISE_WINDOWS, size))
    if config.erase:
        drawn["erased"] = torch.from_numpy(_erased_boxes(stream(4), config.erase, size, image_size_px))
    if config.mixes:
        kept, patch = mixtures(stream(5), config, size, image_size_px)
        if config.mixup:
            drawn["kept"] = _float(kept)
        if config.cutmix:
            drawn["patch"] = torch.from_numpy(patch)
    if config.crop_scale < 1:
        drawn["crop"] = torch.from_numpy(_crops(stream(6), config.crop_scale, size, image_size_px))
    return drawn


def _float(values: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _erased_boxes(rng: np.random.Generator, probability: float, size: int, side_px: int) -> npt.NDArray[np.int64]:
    """Draw rectangles of random area, aspect ratio and position: top, left, bottom, right, `[N, 4]`; empty for images without erasing."""
    area = rng.uniform(*ERASED_AREA, size)
    flattest, steepest = np.log(ERASED_RATIO)
    ratio = np.exp(rng.uniform(flattest, steepest, size))
    extent = np.sqrt(np.stack((area * ratio, area / ratio), 1)) * side_px
    extent = np.minimum(extent.round().astype(np.int64), side_px) * (rng.random((size, 1)) < probability)
    corner = rng.integers(0, side_px - extent + 1)
    return np.concatenate((corner, corner + extent), 1)


def _crops(rng: np.random.Generator, smallest: float, size: int, side_px: int) -> npt.NDArray[np.int64]:
    """Draw rectangles of random area, aspect ratio and position: top, left, height and width, `[N, 4]`.

    As in torchvision, the first of ten draws that fits into the image is used. If none fits, the rectangle is the whole image.
    """
    area = rng.uniform(smallest, 1, (size, CROP_DRAWS)) * side_px**2
    narrowest, widest = np.log(CROP_RATIO)
    ratio = np.exp(rng.uniform(narrowest, widest, (size, CROP_DRAWS)))
    extents = np.stack((np.sqrt(area / ratio), np.sqrt(area * ratio)), 2).round().astype(np.int64)
    fits: npt.NDArray[np.bool_] = (extents.min(axis=2) >= 1) & (extents.max(axis=2) <= side_px)
    first = fits.argmax(axis=1)
    rows = np.arange(size)
    extent = np.where(fits[rows, first, None], extents[rows, first], side_px)
    return np.concatenate((rng.integers(0, side_px - extent + 1), extent), 1)


def mixtures(
    rng: np.random.Generator, config: AugmentationConfig, size: int, side_px: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Draw weights for mixup (Zhang et al. 2018, arXiv 1710.09412) and rectangles for cutmix (Yun et al. 2019, arXiv 1905.04899).

    If both are on, each image gets one of them at random. The other then does nothing: its weight is 1, or its rectangle is empty.

    Returns:
        Weight of each image in its blend with the next, float64 `[N]`, 0–1; and the rectangle that shows the next image, int64 `[N, 4]`:
        top, left, bottom and right.
    """
    cuts = rng.random(size) < (0.5 if config.mixup and config.cutmix else float(config.cutmix > 0))
    kept = np.where(cuts, 1.0, rng.beta(config.mixup or 1, config.mixup or 1, size))
    given = np.where(cuts, 1 - rng.beta(config.cutmix or 1, config.cutmix or 1, size), 0.0)
    half = (0.5 * np.sqrt(given) * side_px).astype(np.int64)[:, None]
    centre = rng.integers(0, side_px, (size, 2))
    return kept, np.concatenate((centre - half, centre + half), 1).clip(0, side_px)


class Augmenter:
    """Applies drawn augmentations to images and normalizes them to inputs of the network.

    Args:
        config: the config that the parameters were drawn with.
        normalize: uint8 or float32 `[N, H, W, 3]` in 0–255 → inputs `[N, 3, H, W]`.
        num_classes: number of classes, for the labels of mixed images.
        image_size_px: side of the images.
        generator: generator of the noise table, on the CPU; the same for all workers.
        device: device of the images.
    """

    def __init__(
        self,
        config: AugmentationConfig,
        normalize: Callable[[Tensor], Tensor],
        *,
        num_classes: int,
        image_size_px: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config, self.normalize, self.num_classes = config, normalize, num_classes
        if config.noise_std:
            # Each image's noise is a window of one table: drawing noise for each pixel takes longer than all other augmentations together.
            pixels = 3 * image_size_px**2
            table = torch.randn(NOISE_WINDOWS + pixels, generator=generator) * (255 * config.noise_std)
            self._noise = table.to(device).unfold(0, pixels, 1)

    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, drawn: Augmentation, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gather and augment images.

        Args:
            images: uint8 `[M, H, W, 3]`.
            labels: of the images at `indices`, int64 `[N]`, or uint8 `[N, C]` with several labels per image; with mixing `[N + 1]`, because
                each image is mixed with the next one.
            indices: int64, as many as labels.
            drawn: the parameters for these images.
            weights: float32, as many as labels, weight of each image in the loss.

        Returns:
            Inputs, `[N, 3, H, W]`, channels last in memory; and labels as given. With mixing, labels are the weight of each class, float32
            `[N, C]`; with `weights`, float32 `[N, C + 1]`, and the last column is the weight of the image.
        """
        place = (images, indices, drawn.shift, drawn.mirrored)
        if drawn.angle is None and drawn.crop is None:
            pixels = shift_and_mirror(*place, self.config.translate_px)
        else:
            pixels = turn(*place, drawn.angle, drawn.crop)
        inputs = self.normalize(self._recolour(pixels, drawn))
        if self.config.cutout_px:
            erase(inputs, torch.cat((drawn.cutout_corner, drawn.cutout_corner + self.config.cutout_px), 1))
        if drawn.erased is not None:
            erase(inputs, drawn.erased)
        if self.config.mixes or weights is not None:
            labels = as_fractions(labels, self.num_classes)
        if weights is not None:
            labels = torch.cat((labels, weights[:, None]), 1)
        if not self.config.mixes:
            return inputs, labels
        kept, patch = (None if values is None else values[:-1] for values in (drawn.kept, drawn.patch))
        return mix(inputs, labels, kept, patch)

    def _recolour(self, pixels: Tensor, drawn: Augmentation) -> Tensor:
        """Apply policy, colour jitter and noise: `[N, H, W, 3]`, uint8 or float32."""
        planes = pixels.permute(0, 3, 1, 2)  # operations on contiguous planes are several times as fast as on interleaved channels
        if drawn.codes is not None and drawn.values is not None:
            planes = apply_operations(planes.contiguous(), drawn.codes, drawn.values)
        if drawn.colour is not None:
            planes = jitter(planes.contiguous().float(), drawn.colour)
        pixels = planes.permute(0, 2, 3, 1).contiguous()
        if drawn.noise is not None:
            pixels = self._noise.index_select(0, drawn.noise).view(pixels.shape).add_(pixels)
        return pixels.clamp_(0, 255) if pixels.is_floating_point() else pixels

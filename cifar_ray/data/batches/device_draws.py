"""Order and augmentation of a whole epoch, drawn at once on the device of the images (version 2 of the draws).

Each random number depends only on seed, epoch and position in the epoch. Integers and uniform numbers have the same bits on all devices.
Floating-point results that are computed from them may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from cifar_ray.config import AugmentationConfig, SamplingName
from cifar_ray.data.batches.augmentation import (
    CROP_DRAWS,
    CROP_RATIO,
    ERASED_AREA,
    ERASED_RATIO,
    NOISE_WINDOWS,
    Augmentation,
    mixtures,
)
from cifar_ray.data.batches.philox import Stream, integers, uniforms
from cifar_ray.data.batches.policy import choices_of_policy
from cifar_ray.metrics.accuracy import Labels

_AT_ONCE = 1 << 16  # images drawn at once: few enough that the intermediate results stay in a CPU's cache and need little memory
_ORDER, _FLIP, _PLACE, _ANGLE, _POLICY, _COLOUR, _NOISE, _ERASE, _MIX, _CROP, _CLASSES = range(11)


class DeviceDraws:
    """Random order and augmentation of a training split.

    Args:
        config: augmentations and their strengths.
        labels: int64 `[N]` or uint8 `[N, C]`.
        num_classes: number of classes.
        sampling: `natural` is a permutation; `balanced` as in `sampling.draw_order`.
        batches: for each batch of an epoch, its slice of the order.
        image_size_px: side of the images.
        seed: 0 to 2³¹-1.
        device: device of all results.
    """

    def __init__(
        self,
        config: AugmentationConfig,
        labels: Labels,
        num_classes: int,
        sampling: SamplingName,
        batches: list[slice],
        image_size_px: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._config, self._batches, self._side_px, self._seed = config, batches, image_size_px, seed
        self._positions = torch.arange(len(labels), device=device)
        self._classes = None if sampling == "natural" else [row for n in range(num_classes) if len(row := np.flatnonzero(labels == n))]
        alternates = config.flip == "alternating" and sampling == "natural"  # balanced sampling repeats images within an epoch
        self._first_flip = self._coins(_FLIP) if alternates else None
        if config.policy != "none":
            self._choices = tuple(torch.from_numpy(table).to(device) for table in choices_of_policy(config, image_size_px))

    def order(self, epoch: int) -> Tensor:
        """Row of each image of an epoch, in the order of training: int64 `[N]`, on the device."""
        if self._classes is not None:
            return self._balanced(epoch).to(self._positions.device)
        return _shuffled(Stream(self._seed, _ORDER, epoch), self._positions)

    def augmentations(self, epoch: int, order: Tensor, first_step: int) -> Iterator[Augmentation]:
        """Augmentation of each batch of an epoch, from `first_step` on; `order` is the result of the method `order`."""
        first = self._batches[first_step].start if first_step < len(self._batches) else len(order)
        parts = [self._draw(epoch, self._positions[start : start + _AT_ONCE]) for start in range(first, len(order), _AT_ONCE)]
        drawn = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Augmentation)}
        mixtures = self._mixtures(epoch, first) if self._config.mixes else {}
        whole = Augmentation(**{name: None if ones[0] is None else torch.cat(ones) for name, ones in drawn.items()} | mixtures)  # type: ignore[arg-type]
        if self._first_flip is not None:
            whole.mirrored.copy_(self._first_flip[order[first:]] ^ bool(epoch % 2))
        for batch in self._batches[first_step:]:
            yield whole[batch.start - first : batch.stop - first]

    def _coins(self, purpose: int) -> Tensor:
        return (Stream(self._seed, purpose).words(self._positions, 1)[:, 0] & 1).bool()

    def _draw(self, epoch: int, positions: Tensor) -> Augmentation:
        """Draw all parameters except mixtures; each has its own random stream, so switching one off does not change the others."""
        config, side = self._config, self._side_px

        def words(purpose: int, count: int) -> Tensor:
            return Stream(self._seed, purpose, epoch).words(positions, count)

        place = words(_PLACE, 5)
        coins = (place[:, 0] & 1).bool()
        half = config.cutout_px // 2
        more: dict[str, Tensor] = {}
        if config.rotate_deg:
            reach = float(np.radians(config.rotate_deg))
            more["angle"] = uniforms(words(_ANGLE, 1)[:, 0], -reach, reach)
        if config.policy != "none":
            more["codes"], more["values"] = self._operations(words(_POLICY, 1 + 2 * max(config.policy_ops, 2)))
        if any(factors := (config.brightness, config.contrast, config.saturation, config.hue * 2 * np.pi)):
            drawn = uniforms(words(_COLOUR, 4))
            columns = [(drawn[:, n] * 2 - 1) * float(reach) + (n < 3) for n, reach in enumerate(factors)]
            more["colour"] = torch.stack(columns, 1)
        if config.noise_std:
            more["noise"] = integers(words(_NOISE, 1)[:, 0], 0, NOISE_WINDOWS)
        if config.erase:
            more["erased"] = _erased_boxes(words(_ERASE, 5), config.erase, side)
        if config.crop_scale < 1:
            more["crop"] = _crops(words(_CROP, 2 * CROP_DRAWS + 2), config.crop_scale, side)
        return Augmentation(
            coins if config.flip != "none" else torch.zeros_like(coins),
            integers(place[:, 1:3], -config.translate_px, config.translate_px + 1),
            integers(place[:, 3:5], -half, side - half),
            **more,
        )

    def _operations(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Draw codes and values of the policy's operations, `[N, K]`, from the table of all choices."""
        chances, codes, values = self._choices
        if self._config.policy == "randaugment":
            ops = self._config.policy_ops
            row = integers(words[:, :ops], 0, len(codes))
            sign = words[:, ops : 2 * ops] & 1
            return codes[row], values[row, sign]
        row = integers(words[:, 0], 0, len(codes))
        happens = uniforms(words[:, 1:3]) < chances[row]
        sign, column = words[:, 3:5] & 1, torch.arange(2, device=words.device)
        return codes[row] * happens, values[row[:, None], column, sign] * happens

    def _mixtures(self, epoch: int, first: int) -> dict[str, Tensor]:
        """Draw `kept` and `patch` with `augmentation.mixtures`, on the CPU: random words have no simple map to a Beta distribution."""
        rng = np.random.default_rng((self._seed, _MIX, epoch))
        kept, patch = mixtures(rng, self._config, len(self._positions), self._side_px)
        drawn = {"kept": torch.from_numpy(kept[first:].astype(np.float32))} if self._config.mixup else {}
        drawn |= {"patch": torch.from_numpy(patch[first:])} if self._config.cutmix else {}
        return {name: values.to(self._positions.device) for name, values in drawn.items()}

    def _balanced(self, epoch: int) -> Tensor:
        """As `sampling.draw_order`, on the CPU, because the sizes of the tensors depend on the number of images of each class."""
        assert self._classes is not None  # noqa: S101
        total = len(self._positions)
        first = _shuffled(Stream(self._seed, _CLASSES, epoch), torch.arange(len(self._classes))).tolist()
        quotas = {kind: len(range(place, total, len(first))) for place, kind in enumerate(first)}
        drawn = []
        for kind, rows in enumerate(self._classes):
            rounds = -(-quotas[kind] // len(rows))
            # The rows are the positions in the stream, so no two classes use the same random word.
            stream = (Stream(self._seed, _CLASSES + 1 + number, epoch) for number in range(rounds))
            drawn.append(torch.cat([_shuffled(one, torch.from_numpy(rows)) for one in stream])[: quotas[kind]])
        order = torch.cat(drawn)
        return order[_shuffled(Stream(self._seed, _ORDER, epoch), torch.arange(total))]


def _shuffled(stream: Stream, values: Tensor) -> Tensor:
    """Permute distinct int64 values: sort them by 63 random bits of each."""
    words = stream.words(values, 2)
    return values[torch.argsort((words[:, 0] << 31) ^ words[:, 1], stable=True)]


def _erased_boxes(words: Tensor, probability: float, side_px: int) -> Tensor:
    """As `augmentation._erased_boxes`, from random words: int64 `[N, 4]`, top, left, bottom and right."""
    area = uniforms(words[:, 0], *ERASED_AREA)
    flattest, steepest = np.log(ERASED_RATIO).tolist()
    ratio = uniforms(words[:, 1], flattest, steepest).exp()
    extent = torch.stack((area * ratio, area / ratio), 1).sqrt() * side_px
    extent = extent.round().long().clamp_max(side_px) * (uniforms(words[:, 2:3]) < probability)
    corner = integers(words[:, 3:5], 0, side_px - extent + 1)
    return torch.cat((corner, corner + extent), 1)


def _crops(words: Tensor, smallest: float, side_px: int) -> Tensor:
    """As `augmentation._crops`, from random words: int64 `[N, 4]`, top, left, height and width."""
    area = uniforms(words[:, :CROP_DRAWS], smallest, 1.0) * side_px**2
    narrowest, widest = np.log(CROP_RATIO).tolist()
    ratio = uniforms(words[:, CROP_DRAWS : 2 * CROP_DRAWS], narrowest, widest).exp()
    extents = torch.stack(((area / ratio).sqrt(), (area * ratio).sqrt()), 2).round().long()
    fits = (extents.amin(2) >= 1) & (extents.amax(2) <= side_px)
    first = fits.to(torch.uint8).argmax(1)[:, None]
    chosen = extents.gather(1, first[:, :, None].expand(-1, -1, 2))[:, 0]
    extent = torch.where(fits.gather(1, first), chosen, side_px)
    return torch.cat((integers(words[:, 2 * CROP_DRAWS :], 0, side_px - extent + 1), extent), 1)

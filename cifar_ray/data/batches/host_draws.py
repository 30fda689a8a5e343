"""Order and augmentation of an epoch, drawn on the CPU for each batch (version 1 of the draws).

A run that an earlier release started resumes with these draws, so its results stay reproducible.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cifar_ray.config import AugmentationConfig, SamplingName
from cifar_ray.data.batches.augmentation import Augmentation
from cifar_ray.data.batches.sampling import draw_order
from cifar_ray.metrics.accuracy import Labels

_FLIP_STREAM, _ORDER_STREAM, _AUGMENT_STREAM, _NOISE_STREAM = range(4)


class HostDraws:
    """Random order and augmentation of a training split; arguments and methods as in `DeviceDraws`."""

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
        self._config, self._batches, self._side_px, self._seed, self._device = config, batches, image_size_px, seed, device
        self._draw_order = partial(draw_order, torch.from_numpy(labels.copy()), num_classes, sampling)
        self._alternates = config.flip == "alternating" and sampling == "natural"
        self._first_flip = torch.randint(0, 2, (len(labels),), generator=_generator(seed, _FLIP_STREAM), dtype=torch.bool)

    def order(self, epoch: int) -> Tensor:
        """As `DeviceDraws.order`."""
        return self._draw_order(_generator(self._seed, _ORDER_STREAM, epoch)).to(self._device)

    def augmentations(self, epoch: int, order: Tensor, first_step: int) -> Iterator[Augmentation]:
        """As `DeviceDraws.augmentations`."""
        order = order.cpu()
        for step, batch in enumerate(self._batches[first_step:], first_step):
            generator = _generator(self._seed, _AUGMENT_STREAM, epoch * len(self._batches) + step)
            drawn = Augmentation.draw(self._config, batch.stop - batch.start, self._side_px, generator)
            if self._alternates:
                drawn.mirrored.copy_(self._first_flip[order[batch]] ^ bool(epoch % 2))
            yield drawn.to(self._device)


def noise_generator(seed: int) -> torch.Generator:
    """Create the generator of the noise table, on the CPU; both versions of the draws use it."""
    return _generator(seed, _NOISE_STREAM)


def _generator(seed: int, stream: int, position: int = 0) -> torch.Generator:
    """Create a generator for a purpose and position, so that no draw depends on earlier draws."""
    words = np.random.SeedSequence((seed, stream, position)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)

"""Which images of a global batch a worker computes. This module does not import torch, so that the driver can count images too."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cifar_ray.errors import DataError


@dataclass(frozen=True)
class Shard:
    """This worker's part of each batch.

    Attributes:
        rank: from 0 to `world_size - 1`.
        world_size: number of workers.
    """

    rank: int = 0
    world_size: int = 1

    def slice(self, size: int) -> slice:
        """This worker's part of `size` items; the parts of all workers cover each item once and differ by at most one."""
        return slice(size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size)

    def rows(self, size: int, with_next: bool) -> npt.NDArray[np.int64]:
        """Positions of this worker's images in a batch of `size`, int64 `[n]`.

        Args:
            size: number of images in the batch.
            with_next: add the image after the last one, which mixing needs; after the last image of the batch comes its first.
        """
        mine = self.slice(size)
        return np.arange(mine.start, mine.stop + with_next) % size


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Number of batches of at most `batch_size` images in an epoch."""
    return -(-images // batch_size)


def batch_slices(images: int, batch_size: int) -> list[slice]:
    """For each batch of an epoch, its slice of the order; the sizes differ by at most one."""
    steps = steps_per_epoch(images, batch_size)
    return [Shard(step, steps).slice(images) for step in range(steps)]


def images_read_per_epoch(images: int, batch_size: int, shard: Shard, with_next: bool) -> int:
    """Number of images that a worker reads in an epoch, counting those that it reads twice; `with_next` as in `Shard.rows`."""
    sizes = Counter(batch.stop - batch.start for batch in batch_slices(images, batch_size))
    return sum(count * len(shard.rows(size, with_next)) for size, count in sizes.items())


def check_batch_size(batch_size: int, images: int, num_workers: int) -> None:
    """Check that a batch is not larger than the training split, and that every worker gets an image.

    Raises:
        DataError: if not; the message says how to choose a batch size that fits.
    """
    if batch_size > images:
        advice = 2 ** int(np.log2(max(1, images // 8)))
        raise DataError(f"batch_size: {batch_size} exceeds the {images} training images; pass --batch-size {advice} or another recipe")
    smallest = images // steps_per_epoch(images, batch_size)
    if smallest < num_workers:
        raise DataError(f"batch_size: a batch of {smallest} images is too small for {num_workers} workers; pass a larger --batch-size")

"""Batches from a data set in memory, as uint8 on the worker's device, or from streamed images.

Every worker draws the same permutation and the same augmentation of each global batch and takes its own slice:
a step sees the same images for any number of workers, and (seed, epoch, step) is enough to repeat it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar_ray.config import AugmentationConfig, SamplingName
from cifar_ray.data.batches.augmentation import Augmentation, Augmenter
from cifar_ray.data.batches.sampling import draw_order, spread_rows
from cifar_ray.data.batches.shares import Shard, batch_slices, check_batch_size
from cifar_ray.data.batches.transforms import normalize
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.statistics import ChannelValues, training_weights
from cifar_ray.data.streamed import StreamedImages, TrainingImages
from cifar_ray.errors import DataError
from cifar_ray.metrics.label_sets import strata

_FLIP_STREAM, _ORDER_STREAM, _AUGMENT_STREAM, _NOISE_STREAM = range(4)


@dataclass(frozen=True)
class Normalization:
    """Normalization of the inputs: mean and standard deviation of each channel, 0–1, and the dtype of the network."""

    mean: ChannelValues
    std: ChannelValues
    dtype: torch.dtype

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize uint8, or float32 in 0–255, `[N, H, W, 3]` to `dtype` `[N, 3, H, W]`."""
        return normalize(images, self.mean, self.std, self.dtype)


@dataclass(frozen=True)
class Step:
    """This worker's share of one global batch.

    Attributes:
        global_size: number of images in the batch of all workers; the loss is divided by it.
        num_pieces: number of micro-batches of this worker, at least 1.
        pieces: (inputs `[n, 3, H, W]`, labels int64 `[n]` or uint8 `[n, C]`) of each micro-batch, computed on demand; labels of mixed
            images are the weights of the classes, float32 `[n, C]`, and of images with weights float32 `[n, C + 1]`, see `Augmenter`.
    """

    global_size: int
    num_pieces: int
    pieces: Iterator[tuple[Tensor, Tensor]]


class TrainLoader:
    """Shuffled, augmented training batches.

    An epoch has N images in `ceil(N / batch_size)` batches whose sizes differ by at most one, so that no batch is a small remainder.

    Args:
        dataset: all training images, in memory on each worker, or streamed.
        batch_size: maximum size of the global batch.
        micro_batch_size: maximum size of a forward pass; `None` for this worker's whole share.
        augmentation: random changes.
        normalization: applied last.
        shard: this worker's part.
        seed: seed of order and augmentation; the same on all workers.
        device: device for images and augmentation.
        sampling: images of an epoch, as for `draw_order`.

    Raises:
        DataError: if a batch is larger than the data set, or smaller than the number of workers.
    """

    def __init__(
        self,
        dataset: TrainingImages,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        augmentation: AugmentationConfig,
        normalization: Normalization,
        shard: Shard,
        seed: int,
        device: torch.device,
        sampling: SamplingName = "natural",
    ) -> None:
        check_batch_size(batch_size, len(dataset), shard.world_size)
        self._source: _Held | _Arriving
        if isinstance(dataset, StreamedImages):
            self.labels = torch.from_numpy(dataset.labels).to(device)
            self._source = _Arriving(dataset, device)
        else:
            images, self.labels = resident(dataset, device)
            self._source = _Held(images)
        weights = training_weights(dataset.weights)
        self._weights = None if weights is None else torch.from_numpy(weights).to(device)
        self.image_size_px = dataset.image_size_px
        self._batches = batch_slices(len(dataset), batch_size)
        self.steps_per_epoch = len(self._batches)
        self.micro_batch_size = micro_batch_size
        self.augmentation = augmentation
        self.shard = shard
        self.seed = seed
        self.device = device
        self._label_array = dataset.labels
        self._draw_order = partial(draw_order, torch.from_numpy(dataset.labels.copy()), dataset.num_classes, sampling)
        self._alternates = augmentation.flip == "alternating" and sampling == "natural"  # else an image may be there twice in an epoch
        self.augment = Augmenter(
            augmentation,
            normalization,
            num_classes=dataset.num_classes,
            image_size_px=dataset.image_size_px,
            generator=self._generator(_NOISE_STREAM),
            device=device,
        )
        self._first_flip = torch.randint(0, 2, (len(dataset),), generator=self._generator(_FLIP_STREAM), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pieces_per_step(self) -> int:
        """Maximum number of micro-batches in a worker's share of a batch."""
        share = -(-len(self) // (self.steps_per_epoch * self.shard.world_size))
        return self._count_pieces(share)

    @property
    def piece_sizes(self) -> list[int]:
        """All sizes of this worker's micro-batches, the largest first."""
        batches = {batch.stop - batch.start for batch in self._batches}
        sizes = set()
        for share in (len(self.shard.rows(size, with_next=False)) for size in batches):
            count = self._count_pieces(share)
            sizes |= {len(range(share)[Shard(number, count).slice(share)]) for number in range(count)}
        return sorted(sizes, reverse=True)

    def sample(self, count: int) -> Tensor:
        """Sample of training images, uint8 `[N, H, W, 3]` on the device, with the classes in the proportions of the data set.

        It has `count` images of 32 px, or fewer larger ones with as many pixels.
        """
        return self._source.read(spread_rows(count, strata(self._label_array), self.image_size_px))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Step]:
        """Iterate over the steps of an epoch (from 0), starting at `first_step`."""
        order = self._draw_order(self._generator(_ORDER_STREAM, epoch))
        batches = [order[batch] for batch in self._batches]
        self._source.expect(batch[self._rows(len(batch))] for batch in batches[first_step:])
        for step, batch in enumerate(batches[first_step:], first_step):
            drawn = Augmentation.draw(
                self.augmentation, len(batch), self.image_size_px, self._generator(_AUGMENT_STREAM, epoch * self.steps_per_epoch + step)
            )
            if self._alternates:
                drawn.mirrored.copy_(self._first_flip[batch] ^ bool(epoch % 2))
            rows = self._rows(len(batch))
            share = len(rows) - self.augmentation.mixes
            count = self._count_pieces(share)
            yield Step(len(batch), count, self._pieces(batch[rows].to(self.device), drawn[rows].to(self.device), share, count))

    def _rows(self, size: int) -> Tensor:
        """Positions of this worker's images in a batch of `size`; with mixing also the next one, which wraps around at the end."""
        return torch.from_numpy(self.shard.rows(size, with_next=self.augmentation.mixes))

    def _count_pieces(self, share: int) -> int:
        return -(-share // (self.micro_batch_size or share))

    def _pieces(self, indices: Tensor, drawn: Augmentation, share: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        images, places = self._source.take(indices)
        for number in range(count):
            part = Shard(number, count).slice(share)
            part = slice(part.start, part.stop + self.augmentation.mixes)
            rows = indices[part]
            weights = None if self._weights is None else self._weights[rows]
            yield self.augment(images, self.labels[rows], places[part], drawn[part], weights)

    def _generator(self, stream: int, position: int = 0) -> torch.Generator:
        """Create a generator for a purpose and position, so that no draw depends on earlier draws."""
        words = np.random.SeedSequence((self.seed, stream, position)).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


class _Held:
    """Images in memory, with random access."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def read(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Images at `rows`, uint8 `[n, H, W, 3]` on the device."""
        return self._images[torch.from_numpy(rows).to(self._images.device)]

    def expect(self, shares: Iterable[Tensor]) -> None:
        """Do nothing: images in memory need no request."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images, uint8 `[M, H, W, 3]`, and the positions of `indices`, int64 `[n]`, in them."""
        return self._images, indices


class _Arriving:
    """Streamed images: each requested image is taken once, in the requested order."""

    def __init__(self, dataset: StreamedImages, device: torch.device) -> None:
        self._dataset, self._device = dataset, device
        self._blocks: Iterator[npt.NDArray[np.uint8]] = iter(())
        self._rest = np.empty((0, dataset.image_size_px, dataset.image_size_px, 3), np.uint8)

    def read(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Images at `rows`, as `_Held.read`; they do not count as taken."""
        return torch.from_numpy(self._dataset.pictures.read(rows)).to(self._device)

    def expect(self, shares: Iterable[Tensor]) -> None:
        """Request the images of a whole epoch, int64 `[n]` per step; `take` then gets the same indices."""
        self._rest = self._rest[:0]
        self._blocks = self._dataset.feed(torch.cat(list(shares)).numpy())

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return only the images at `indices`, otherwise as `_Held.take`."""
        images = np.empty((len(indices), *self._rest.shape[1:]), np.uint8)
        done = 0
        while done < len(images):
            if not len(self._rest):
                block = next(self._blocks, None)
                if block is None:  # a StopIteration here would become a RuntimeError of `epoch`, which is retried
                    raise DataError("the stream of training images ended before the epoch; report this as a bug")
                self._rest = block
            count = min(len(images) - done, len(self._rest))
            images[done : done + count], self._rest = self._rest[:count], self._rest[count:]
            done += count
        return torch.from_numpy(images).to(self._device), torch.arange(len(images), device=self._device)


class EvaluationLoader:
    """This worker's part of a split, in order and without augmentation; all workers together cover each image exactly once.

    Args:
        dataset: the whole split.
        batch_size: maximum batch size of this worker.
        normalization: applied to each batch.
        shard: this worker's part.
        device: device of the images.
    """

    def __init__(self, dataset: ImageDataset, *, batch_size: int, normalization: Normalization, shard: Shard, device: torch.device) -> None:
        mine = shard.slice(len(dataset))
        self.images, self.labels = resident(ImageDataset(dataset.images[mine], dataset.labels[mine], dataset.class_names), device)
        self.batch_size = batch_size
        self.normalization = normalization
        self.num_classes = dataset.num_classes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(torch.split(self.images, self.batch_size), torch.split(self.labels, self.batch_size), strict=True):
            if len(labels):
                yield self.normalization(images), labels


def resident(dataset: ImageDataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images, uint8 `[N, H, W, 3]`, and labels, int64 `[N]`, on the device; on a CPU without a copy if the memory is writable."""
    arrays = (dataset.images, dataset.labels)
    images, labels = (torch.from_numpy(array if array.flags.writeable else array.copy()).to(device) for array in arrays)
    return images, labels

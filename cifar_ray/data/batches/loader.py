"""Batches from a data set in memory, as uint8 on the worker's device, or from streamed images.

Every worker draws the same permutation and the same augmentation of each global batch and takes its own slice:
a step sees the same images for any number of workers, and (seed, epoch, step) is enough to repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cifar_ray.config import AugmentationConfig, SamplingName
from cifar_ray.data.batches.augmentation import Augmentation, Augmenter
from cifar_ray.data.batches.device_draws import DeviceDraws
from cifar_ray.data.batches.host_draws import HostDraws, noise_generator
from cifar_ray.data.batches.image_memory import Arriving, Held
from cifar_ray.data.batches.sampling import spread_rows
from cifar_ray.data.batches.shares import Shard, batch_slices, check_batch_size
from cifar_ray.data.batches.transforms import channel_constants, normalize_by
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.statistics import ChannelValues, training_weights
from cifar_ray.data.streamed import StreamedImages, TrainingImages
from cifar_ray.metrics.label_sets import label_set_ids

Pieces = Iterator[tuple[Tensor, Tensor]]
NEWEST_DRAWS = 2  # version of the generator of order and augmentation


@dataclass(frozen=True)
class Normalization:
    """Normalization of the inputs: mean and standard deviation of each channel, 0–1, and the dtype of the network."""

    mean: ChannelValues
    std: ChannelValues
    dtype: torch.dtype

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize uint8, or float32 in 0–255, `[N, H, W, 3]` to `dtype` `[N, 3, H, W]`."""
        return self.on(images.device, images.shape[2])(images)

    def on(self, device: torch.device, width_px: int) -> Callable[[Tensor], Tensor]:
        """This normalization for one image width, with its constants on the device: copying them in each batch would wait for a GPU."""
        return partial(normalize_by, constants=channel_constants(self.mean, self.std, width_px, device), dtype=self.dtype)


@dataclass(frozen=True)
class Share:
    """This worker's images of one global batch, not yet gathered.

    Attributes:
        indices: int64 `[n]`; with mixing `[n + 1]`, because each image is mixed with the next one.
        drawn: the augmentation of these images.
    """

    indices: Tensor
    drawn: Augmentation

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        return [self.indices, *self.drawn.tensors()]

    def clone(self) -> Share:
        """A copy of all tensors."""
        return Share(self.indices.clone(), self.drawn.clone())


@dataclass(frozen=True)
class Step:
    """This worker's share of one global batch.

    Attributes:
        global_size: number of images in the batch of all workers; the loss is divided by it.
        num_pieces: number of micro-batches of this worker, at least 1.
        pieces: (inputs `[n, 3, H, W]`, labels int64 `[n]` or uint8 `[n, C]`) of each micro-batch, computed on demand. With mixing, labels
            are the weights of the classes, float32 `[n, C]`; if images have weights, they are float32 `[n, C + 1]`. See `Augmenter`.
        share: the argument of `TrainLoader.pieces` that computes the same pieces again; `None` for streamed images.
    """

    global_size: int
    num_pieces: int
    pieces: Pieces
    share: Share | None = None


class TrainLoader:
    """Shuffled, augmented training batches.

    An epoch has N images in `ceil(N / batch_size)` batches whose sizes differ by at most one, so that no batch is a small remainder.

    Args:
        dataset: all training images, in memory on each worker, or streamed.
        batch_size: maximum size of the global batch.
        micro_batch_size: maximum size of a forward pass; `None` for this worker's whole share.
        augmentation: augmentations and their strengths.
        normalization: applied after changes of geometry and colour, and before cutout, erasing and mixing.
        shard: this worker's part.
        seed: seed of order and augmentation; the same on all workers.
        device: device for images and augmentation.
        sampling: images of an epoch, as for `draw_order`.
        draws: version of the generator of order and augmentation; releases before 0.3 have version 1.

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
        draws: int = NEWEST_DRAWS,
    ) -> None:
        check_batch_size(batch_size, len(dataset), shard.world_size)
        self._source: Held | Arriving
        if isinstance(dataset, StreamedImages):
            self.labels = torch.from_numpy(dataset.labels).to(device)
            self._source = Arriving(dataset, device)
        else:
            images, self.labels = resident(dataset, device)
            self._source = Held(images)
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
        make = HostDraws if draws == 1 else DeviceDraws
        self._draws: HostDraws | DeviceDraws = make(
            augmentation, dataset.labels, dataset.num_classes, sampling, self._batches, dataset.image_size_px, seed, device
        )
        self._rows_of: dict[int, slice | Tensor] = {}
        self.augment = Augmenter(
            augmentation,
            normalization.on(device, dataset.image_size_px),
            num_classes=dataset.num_classes,
            image_size_px=dataset.image_size_px,
            generator=noise_generator(seed),
            device=device,
        )

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
        return self._source.read(spread_rows(count, label_set_ids(self._label_array), self.image_size_px))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Step]:
        """Iterate over the steps of an epoch (from 0), starting at `first_step`."""
        order = self._draws.order(epoch)
        batches = [order[batch] for batch in self._batches[first_step:]]
        self._source.expect(batch[self._rows(len(batch))] for batch in batches)
        for batch, drawn in zip(batches, self._draws.augmentations(epoch, order, first_step), strict=True):
            rows = self._rows(len(batch))
            share = Share(batch[rows], drawn[rows])
            count = self._count_pieces(len(share.indices) - self.augmentation.mixes)
            yield Step(len(batch), count, self.pieces(share), share if self.is_resident else None)

    @property
    def is_resident(self) -> bool:
        """Whether all images are in the memory of the device, at one address throughout the training."""
        return isinstance(self._source, Held)

    def _rows(self, size: int) -> slice | Tensor:
        """Positions of this worker's images in a batch of `size`; with mixing also the image after them, where the batch wraps around."""
        if size not in self._rows_of:
            rows = torch.from_numpy(self.shard.rows(size, with_next=self.augmentation.mixes)).to(self.device)
            self._rows_of[size] = rows if self.augmentation.mixes else self.shard.slice(size)
        return self._rows_of[size]

    def _count_pieces(self, share: int) -> int:
        return -(-share // (self.micro_batch_size or share))

    def pieces(self, share: Share) -> Pieces:
        """Gather and augment a share in micro-batches, as `Step.pieces`; with streamed images only once and in the order of the steps."""
        images, places = self._source.take(share.indices)
        size = len(share.indices) - self.augmentation.mixes
        count = self._count_pieces(size)
        for number in range(count):
            part = Shard(number, count).slice(size)
            part = slice(part.start, part.stop + self.augmentation.mixes)
            rows = share.indices[part]
            weights = None if self._weights is None else self._weights[rows]
            yield self.augment(images, self.labels[rows], places[part], share.drawn[part], weights)


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
        self._normalize = normalization.on(device, dataset.image_size_px)
        self.num_classes = dataset.num_classes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(torch.split(self.images, self.batch_size), torch.split(self.labels, self.batch_size), strict=True):
            if len(labels):
                yield self._normalize(images), labels


def resident(dataset: ImageDataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images, uint8 `[N, H, W, 3]`, and labels, as in `ImageDataset`, on the device; on a CPU without a copy if the memory is writable."""
    arrays = (dataset.images, dataset.labels)
    images, labels = (torch.from_numpy(array if array.flags.writeable else array.copy()).to(device) for array in arrays)
    return images, labels

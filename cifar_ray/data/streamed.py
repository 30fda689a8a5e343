"""Streamed training images: they stay in their files and are decoded again in each epoch, because they exceed the memory.

A first pass decodes all pictures. It finds damaged pictures, and computes the same splits, statistics and fingerprint as for pictures in
memory. The cache then holds the rows and labels of the training images, and the validation and test images as arrays.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy
from cifar_ray.data import dataset_cache as cache
from cifar_ray.data.bursts import MAX_PICTURES, SKETCH_PX, find_bursts, sketch
from cifar_ray.data.dataset import DatasetSplits, ImageDataset, Splits
from cifar_ray.data.decode import DECODER_VERSION
from cifar_ray.data.folder import Damaged, check_present, decoder, decoding_threads
from cifar_ray.data.listing.layouts import Listing
from cifar_ray.data.reading.local_cache import load_or_write
from cifar_ray.data.reading.picture_source import Pictures
from cifar_ray.data.statistics import ChannelHistogram, ChannelValues, channel_mean_std
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import DataError
from cifar_ray.metrics.accuracy import Labels
from cifar_ray.metrics.label_sets import label_set_ids

_CHUNK_BYTES = 8 << 20
_MAX_CHUNK_IMAGES = 256
_Indices = npt.NDArray[np.int64]
# Rows, int64 [n] → their images in this order, in blocks of uint8 [m, H, W, 3].
Feed = Callable[[_Indices], Iterator[npt.NDArray[np.uint8]]]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureFiles:
    """Pictures and the size and policy for decoding them.

    Attributes:
        files: the pictures.
        size_px: side of the decoded images.
        policy: policy that makes them square.
    """

    files: Pictures
    size_px: int
    policy: ResizePolicy

    @property
    def chunk(self) -> int:
        """Number of images per task, at most 256: a few megabytes, which take some tenths of a second."""
        return max(1, min(_MAX_CHUNK_IMAGES, _CHUNK_BYTES // (3 * self.size_px**2)))

    def read(self, rows: _Indices) -> npt.NDArray[np.uint8]:
        """Decode the pictures at `rows`, int64 `[n]`, in this order: uint8 `[n, size_px, size_px, 3]`.

        Raises:
            DataError: if a picture can no longer be decoded.
        """
        images = np.empty((len(rows), self.size_px, self.size_px, 3), np.uint8)
        files = self.files.take(rows)
        decode = decoder(files, images, self.size_px, self.policy)
        if files.is_remote:  # one thread decodes local pictures: there is a process for each core
            with ThreadPool(decoding_threads(files)) as pool:
                errors = pool.map(decode, range(len(rows)))
        else:
            errors = list(map(decode, range(len(rows))))
        if error := next((one for one in errors if one is not None), None):
            raise DataError(f"{error}. It was intact when training started; do not change the pictures during training")
        return images

    def blocks(self, rows: _Indices) -> Iterator[npt.NDArray[np.uint8]]:
        """Decode the pictures at `rows` in blocks."""
        for start in range(0, len(rows), self.chunk):
            yield self.read(rows[start : start + self.chunk])


@dataclass(frozen=True)
class StreamedImages:
    """Training images of a folder that stay in their files.

    Attributes:
        pictures: the files, in the order of `ImageDataset.images`.
        labels: as in `ImageDataset`.
        class_names: one name per class, in label order.
        mean_std: mean and standard deviation of the channels over all images.
        fingerprint: the fingerprint of the same images as an `ImageDataset`.
        feed: returns images in a given order; by default this process decodes them on demand.
        weights: float32, `[N]`, weight of each image in the loss; `None` if all count the same.
        bursts: as in `ImageDataset`.
    """

    pictures: PictureFiles
    labels: Labels
    class_names: tuple[str, ...]
    mean_std: tuple[ChannelValues, ChannelValues]
    fingerprint: str
    feed: Feed
    weights: npt.NDArray[np.float32] | None = None
    bursts: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, present or not."""
        return len(self.class_names)

    @property
    def image_size_px(self) -> int:
        """Height and width of every image."""
        return self.pictures.size_px


class StreamedSplits(Splits[StreamedImages]):
    """Splits with streamed training images; validation and test images are memory-mapped arrays."""


TrainingImages = ImageDataset | StreamedImages
TrainingSplits = DatasetSplits | StreamedSplits


def training_mean_std(images: TrainingImages) -> tuple[ChannelValues, ChannelValues]:
    """Mean and standard deviation of the channels, computed for images in memory and stored for streamed ones."""
    return images.mean_std if isinstance(images, StreamedImages) else channel_mean_std(images)


def load_streamed(
    listing: Listing,
    size_px: int,
    policy: ResizePolicy,
    divide: Callable[[DatasetSplits], DatasetSplits],
    division: str,
    progress: StartTask = no_progress,
) -> StreamedSplits:
    """Prepare a folder for streaming, once per node.

    Args:
        listing: pictures, classes and splits of the folder.
        size_px: side of the images.
        policy: policy that makes them square.
        divide: draws the splits and merges classes; it gets labels and names without pixels.
        division: describes `divide` in the cache key; equal if and only if `divide` does the same.
        progress: receives the progress of decoding.

    Raises:
        DataError: as for `load_folder`, or raised by `divide`.
    """
    digest = hashlib.sha256(f"{listing.fingerprint()}\0{division}".encode()).hexdigest()
    entry = f"{listing.name}-{size_px}px-{policy}-streamed3-v{DECODER_VERSION}-{digest[:16]}"
    return load_or_write(
        entry,
        lambda folder: _read(folder, PictureFiles(listing.pictures, size_px, policy)),
        lambda folder: _prepare(folder, listing, size_px, policy, divide, progress),
    )


def _read(folder: Path, listed: PictureFiles) -> StreamedSplits:
    about = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    class_names = tuple(about["class_names"])
    pictures = replace(listed, files=listed.files.take(np.load(folder / "train_rows.npy")))
    mean, std = (tuple(values) for values in about["mean_std"])
    labels = np.load(folder / "train_labels.npy")
    weights, bursts = (np.load(path) if (path := folder / f"train_{kind}.npy").exists() else None for kind in ("weights", "bursts"))
    train = StreamedImages(pictures, labels, class_names, (mean, std), about["fingerprint"], pictures.blocks, weights, bursts)
    held = {split: cache.read_part(folder, split, class_names) for split in about["held"]}
    return StreamedSplits(about["name"], train, held.get("val"), held.get("test"))


def _prepare(
    folder: Path,
    listing: Listing,
    size_px: int,
    policy: ResizePolicy,
    divide: Callable[[DatasetSplits], DatasetSplits],
    progress: StartTask,
) -> None:
    """Decode all pictures and write an entry; repeat if damaged pictures or bursts change the splits."""
    pictures = listing.pictures
    broken: set[int] = set()
    damaged = Damaged(listing)
    splits = divide(without_pixels(listing, broken))
    while True:
        work = _Pass(folder, splits, size_px, policy, len(listing.parts["train"]))
        broken |= work.run(pictures, listing.labels, broken, damaged, progress)
        found = without_pixels(listing, broken)
        found = DatasetSplits(found.name, replace(found.train, bursts=work.find_bursts(found.train)), found.val, found.test)
        divided = divide(found)
        if all(np.array_equal(_numbers(one), _numbers(other)) for (_, one), (_, other) in zip(splits, divided, strict=True)):
            break
        splits = divided
        _logger.info("decoding again, because %d damaged pictures or near-duplicates change the splits", len(broken))
    damaged.report()
    work.finish(pictures, divided)


def without_pixels(listing: Listing, broken: set[int]) -> DatasetSplits:
    """The intact pictures as images without pixels, each named by its number in the listing, for `divide`."""
    parts, first = {}, 0
    for split, part in listing.parts.items():
        rows = np.setdiff1d(np.arange(len(part)), np.array(sorted(broken), np.int64) - first, assume_unique=True)
        weights = None if part.weights is None else part.weights[rows]
        empty, numbers = np.empty((len(rows), 0, 0, 3), np.uint8), (first + rows).astype(np.int64).view("S8")
        parts[split] = ImageDataset(empty, part.labels[rows], listing.class_names, numbers, weights=weights)
        first += len(part)
    check_present(listing, parts)
    return DatasetSplits(listing.name, parts["train"], parts.get("val"), parts.get("test"))


class _Pass:
    """Decodes all pictures once: adds training images to histogram and hash, and writes the others to the entry."""

    def __init__(self, folder: Path, splits: DatasetSplits, size_px: int, policy: ResizePolicy, num_train: int) -> None:
        """`num_train` pictures come first in the listing and are searched for bursts."""
        self._folder, self._splits, self._size_px, self._policy = folder, splits, size_px, policy
        self._num_sketched = num_train if num_train <= MAX_PICTURES else 0
        self._sketches = np.zeros((self._num_sketched, SKETCH_PX, SKETCH_PX, 3), np.uint8)
        self._aspects = np.ones(self._num_sketched, np.float32)
        self._numbers = {split: _numbers(part) for split, part in splits}
        self._held = {split: cache.allocate(folder, split, len(part), size_px) for split, part in splits if split != "train" and len(part)}
        self._histogram = ChannelHistogram()
        # the same digest as `ImageDataset.fingerprint`
        self._digest = hashlib.sha256("\0".join(splits.train.class_names).encode())
        self._digest.update(np.ascontiguousarray(splits.train.labels).data)
        if splits.train.weights is not None:
            self._digest.update(splits.train.weights.data)

    def run(self, pictures: Pictures, labels: _Indices, known_broken: set[int], damaged: Damaged, progress: StartTask) -> set[int]:
        """Decode the pictures; return the numbers of newly found damaged ones, and add their errors to `damaged`."""
        broken: set[int] = set()
        chunk = max(1, _CHUNK_BYTES // (3 * self._size_px**2))
        on_decoded = progress("decoding", len(pictures))
        with ThreadPool(decoding_threads(pictures)) as pool:
            for start in range(0, len(pictures), chunk):
                numbers = np.array([n for n in range(start, min(start + chunk, len(pictures))) if n not in known_broken], np.int64)
                images = np.empty((len(numbers), self._size_px, self._size_px, 3), np.uint8)
                errors = pool.map(decoder(pictures.take(numbers), images, self._size_px, self._policy), range(len(numbers)))
                for number, error in zip(numbers.tolist(), errors, strict=True):
                    if error is not None:
                        damaged.add(labels[number], error)
                        broken.add(number)
                self._sort(numbers, images)
                searched = numbers[numbers < self._num_sketched]
                self._sketches[searched], self._aspects[searched] = sketch(images[: len(searched)])
                on_decoded(min(chunk, len(pictures) - start))
        return broken

    def _sort(self, numbers: _Indices, images: npt.NDArray[np.uint8]) -> None:
        """Add images, with ascending numbers int64 `[n]`, to their splits."""
        for split, members in self._numbers.items():
            rows, here = _common(members, numbers)
            if split == "train":
                self._digest.update(images[here].data)
                self._histogram.add(images[here])
            elif len(rows):
                self._held[split][rows] = images[here]

    def find_bursts(self, train: ImageDataset) -> _Indices | None:
        """The bursts of the training images of the listing, as for pictures in memory."""
        rows = _numbers(train)
        return find_bursts(self._sketches[rows], self._aspects[rows], label_set_ids(train.labels)) if self._num_sketched else None

    def finish(self, pictures: Pictures, splits: DatasetSplits) -> None:
        """Write the rest of the entry: the splits with bursts; for training images rows of the listing, for others file names."""
        for split, part in splits:
            rows = self._numbers[split]
            cache.write_labels(self._folder, split, replace(part, files=None if split == "train" else pictures.names[rows]))
            if split == "train":
                np.save(self._folder / "train_rows.npy", rows)
        about = {
            "name": self._splits.name,
            "class_names": self._splits.train.class_names,
            "held": list(self._held),
            "mean_std": self._histogram.mean_std(),
            "fingerprint": self._digest.hexdigest(),
        }
        (self._folder / "entry.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def _numbers(part: ImageDataset) -> _Indices:
    assert part.files is not None  # noqa: S101
    return np.ascontiguousarray(part.files).view(np.int64)  # from `without_pixels`


def _common(members: _Indices, numbers: _Indices) -> tuple[_Indices, _Indices]:
    """Positions of the common elements in both arrays, which are ascending; `numbers` is a range of the listing."""
    low, high = np.searchsorted(members, numbers[:1], "left"), np.searchsorted(members, numbers[-1:], "right")
    rows = np.arange(low[0], high[0]) if len(numbers) else np.empty(0, np.int64)
    return rows, np.searchsorted(numbers, members[rows])

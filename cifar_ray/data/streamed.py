"""Training images that stay in their files and are decoded anew each epoch, because decoded they would not fit into memory.

All pictures are decoded once before: that finds the broken ones, and gives the very splits, statistics and fingerprint that the
same pictures have when held in memory. What is kept of it in the cache are names and labels of the training images, and validation and
test images as arrays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy
from cifar_ray.data import cache
from cifar_ray.data.dataset import DatasetSplits, ImageDataset, Splits
from cifar_ray.data.decode import DECODER_VERSION, decode_image, fit
from cifar_ray.data.folder import Listing, check_broken, check_present, decoder, decoding_threads
from cifar_ray.data.statistics import ChannelHistogram, ChannelValues, channel_mean_std
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import DataError, ImageError

_CHUNK_BYTES = 8 << 20
_MOST_A_CHUNK = 256
_Indices = npt.NDArray[np.int64]
# Rows, int64 [n] → their images in this order, uint8 [m, H, W, 3] at a time.
Feed = Callable[[_Indices], Iterator[npt.NDArray[np.uint8]]]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureFiles:
    """Where pictures lie, and what they become: all that a process needs to decode them.

    Attributes:
        root: the folder of the data set.
        names: bytes, `[N]`, relative to it.
        size_px: side of the images made of them.
        policy: how they are made square.
    """

    root: Path
    names: npt.NDArray[np.bytes_]
    size_px: int
    policy: ResizePolicy

    @property
    def chunk(self) -> int:
        """Images that are worth one task: some megabytes, some tenths of a second."""
        return max(1, min(_MOST_A_CHUNK, _CHUNK_BYTES // (3 * self.size_px**2)))

    def read(self, rows: _Indices) -> npt.NDArray[np.uint8]:
        """Decodes the pictures at `rows`, int64 `[n]`, in this order: uint8 `[n, size_px, size_px, 3]`.

        Raises:
            DataError: if one cannot be decoded any more.
        """
        images = np.empty((len(rows), self.size_px, self.size_px, 3), np.uint8)
        for image, row in zip(images, rows, strict=True):
            try:
                image[:] = fit(decode_image(self.root / os.fsdecode(self.names[row])), self.size_px, self.policy)
            except ImageError as error:
                raise DataError(f"{error}; it was sound when the data were prepared: leave them alone while training") from None
        return images

    def blocks(self, rows: _Indices) -> Iterator[npt.NDArray[np.uint8]]:
        """The same, some at a time."""
        for start in range(0, len(rows), self.chunk):
            yield self.read(rows[start : start + self.chunk])


@dataclass(frozen=True)
class StreamedImages:
    """The training images of a folder, in their files.

    Attributes:
        pictures: the files, in the order of `ImageDataset.images`.
        labels: int64, `[N]`, in `0…len(class_names)-1`.
        class_names: one name a class, in label order.
        mean_std: of the channels, over all of these images.
        fingerprint: that of the same images as an `ImageDataset`.
        feed: brings images in the order asked for; unless another is given, this process decodes them when they are needed.
    """

    pictures: PictureFiles
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    mean_std: tuple[ChannelValues, ChannelValues]
    fingerprint: str
    feed: Feed

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
    """Splits whose training images are streamed; validation and test images are memory-mapped arrays, read from front to back."""


TrainingImages = ImageDataset | StreamedImages
TrainingSplits = DatasetSplits | StreamedSplits


def training_mean_std(images: TrainingImages) -> tuple[ChannelValues, ChannelValues]:
    """As `channel_mean_std`, which those that are streamed bring along."""
    return images.mean_std if isinstance(images, StreamedImages) else channel_mean_std(images)


def load_streamed(
    listing: Listing,
    size_px: int,
    policy: ResizePolicy,
    divide: Callable[[DatasetSplits], DatasetSplits],
    division: str,
    progress: StartTask = no_progress,
) -> StreamedSplits:
    """Prepares a folder for streaming, once a node.

    Args:
        listing: its pictures.
        size_px: side of the images.
        policy: how they are made square.
        divide: draws the splits and puts classes together; it is given labels and names without pixels.
        division: names what `divide` does; equal if and only if that is.
        progress: of the decoding.

    Raises:
        DataError: as for `load_folder`, or from `divide`.
    """
    digest = hashlib.sha256(f"{listing.fingerprint()}\0{division}".encode()).hexdigest()
    entry = f"{listing.name}-{size_px}px-{policy}-streamed-v{DECODER_VERSION}-{digest[:16]}"
    return cache.load_or_write(
        entry,
        lambda folder: _read(folder, PictureFiles(listing.root, np.empty(0, "S1"), size_px, policy)),
        lambda folder: _prepare(folder, listing, size_px, policy, divide, progress),
    )


def _read(folder: Path, empty: PictureFiles) -> StreamedSplits:
    about = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    class_names = tuple(about["class_names"])
    pictures = PictureFiles(empty.root, np.load(folder / "train_files.npy"), empty.size_px, empty.policy)
    mean, std = (tuple(values) for values in about["mean_std"])
    train = StreamedImages(pictures, np.load(folder / "train_labels.npy"), class_names, (mean, std), about["fingerprint"], pictures.blocks)
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
    """Decodes all pictures and writes an entry; does so again without the broken ones where it finds some, since they change the draw."""
    files = [file for pairs in listing.files.values() for file in pairs]
    broken: dict[int, str] = {}
    while True:
        splits = divide(_without_pixels(listing, broken))
        work = _Pass(folder, listing, splits, size_px, policy)
        newly_broken = work.run(files, broken, progress)
        if not newly_broken:
            break
        broken |= newly_broken
        _logger.info("%d pictures are broken and left out: decoding again, since that changes which are drawn", len(broken))
    for error in broken.values():
        _logger.warning("skipped %s", error)
    work.finish(files)


def _without_pixels(listing: Listing, broken: dict[int, str]) -> DatasetSplits:
    """The sound pictures as images of no pixels, each with its number in the listing for a name, for `divide` to deal with."""
    parts, first = {}, 0
    for split, files in listing.files.items():
        numbers = np.array([number for number in range(first, first + len(files)) if number not in broken], np.int64)
        labels = np.array([files[number - first][1] for number in numbers], np.int64)
        parts[split] = ImageDataset(np.empty((len(numbers), 0, 0, 3), np.uint8), labels, listing.class_names, numbers.astype("S"))
        first += len(files)
    check_present(listing, parts)
    return DatasetSplits(listing.name, parts["train"], parts.get("val"), parts.get("test"))


class _Pass:
    """Decodes all pictures once: training images are counted and hashed, others are written to the entry."""

    def __init__(self, folder: Path, listing: Listing, splits: DatasetSplits, size_px: int, policy: ResizePolicy) -> None:
        self._folder, self._listing, self._splits, self._size_px, self._policy = folder, listing, splits, size_px, policy
        self._numbers = {split: _numbers(part) for split, part in splits}
        self._held = {split: cache.allocate(folder, split, len(part), size_px) for split, part in splits if split != "train" and len(part)}
        self._histogram = ChannelHistogram()
        # as `ImageDataset.fingerprint`
        self._digest = hashlib.sha256("\0".join(splits.train.class_names).encode())
        self._digest.update(np.ascontiguousarray(splits.train.labels).data)

    def run(self, files: list[tuple[Path, int]], known_broken: dict[int, str], progress: StartTask) -> dict[int, str]:
        """Decodes; returns what is wrong with pictures that were thought sound, by number."""
        broken: dict[int, str] = {}
        chunk = max(1, _CHUNK_BYTES // (3 * self._size_px**2))
        on_decoded = progress("decoding", len(files))
        with ThreadPool(decoding_threads()) as pool:
            for start in range(0, len(files), chunk):
                numbers = np.array([n for n in range(start, min(start + chunk, len(files))) if n not in known_broken], np.int64)
                images = np.empty((len(numbers), self._size_px, self._size_px, 3), np.uint8)
                errors = pool.map(decoder([files[n] for n in numbers], images, self._size_px, self._policy), range(len(numbers)))
                broken |= {int(n): error for n, error in zip(numbers, errors, strict=True) if error is not None}
                check_broken(self._listing, [*known_broken.values(), *broken.values()])
                self._sort(numbers, images)
                on_decoded(min(chunk, len(files) - start))
        return broken

    def _sort(self, numbers: _Indices, images: npt.NDArray[np.uint8]) -> None:
        """Gives images, int64 `[n]` by number and ascending, to the splits they belong to."""
        for split, members in self._numbers.items():
            rows, here = _common(members, numbers)
            if split == "train":
                self._digest.update(images[here].data)
                self._histogram.add(images[here])
            elif len(rows):
                self._held[split][rows] = images[here]

    def finish(self, files: list[tuple[Path, int]]) -> None:
        """Writes the rest of the entry."""
        for split, part in self._splits:
            names = np.array([os.fsencode(files[number][0].relative_to(self._listing.root)) for number in self._numbers[split]])
            np.save(self._folder / f"{split}_labels.npy", part.labels)
            np.save(self._folder / f"{split}_files.npy", names)
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
    return part.files.astype(np.int64)


def _common(members: _Indices, numbers: _Indices) -> tuple[_Indices, _Indices]:
    """Positions in both of what is in both; each ascending, and `numbers` a stretch of the listing."""
    low, high = np.searchsorted(members, numbers[:1], "left"), np.searchsorted(members, numbers[-1:], "right")
    rows = np.arange(low[0], high[0]) if len(numbers) else np.empty(0, np.int64)
    return rows, np.searchsorted(numbers, members[rows])

"""`ImageDataset`: labelled images as arrays, for training and evaluation; and the splits of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cifar_ray.config import printable
from cifar_ray.errors import DataError
from cifar_ray.metrics.accuracy import Labels
from cifar_ray.metrics.label_sets import count_labels


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images of one size as plain arrays (often memory-mapped from the cache).

    Attributes:
        images: uint8, `[N, H, W, 3]`, RGB, 0–255.
        labels: int64, `[N]`, from 0 to `len(class_names) - 1`; with several labels per image uint8, `[N, C]`, of 0 and 1.
        class_names: one name per class, in label order.
        files: bytes, `[N]`: path of each image, relative to the folder of the data set; `None` if the images are not files.
        bursts: int64, `[N]`, equal for near-duplicates of one class, see `find_bursts`; `None` if they were not searched.
        weights: float32, `[N]`, weight of each image in the training loss; `None` if all count the same.

    Raises:
        DataError: if shapes, dtypes or labels are inconsistent.
    """

    images: npt.NDArray[np.uint8]
    labels: Labels
    class_names: tuple[str, ...]
    files: npt.NDArray[np.bytes_] | None = None
    bursts: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise DataError(f"images must be uint8 [N, H, W, 3], got {self.images.dtype} {list(self.images.shape)}")
        shape, largest = (
            ((len(self.images),), self.num_classes - 1) if not self.is_multi_label else ((len(self.images), self.num_classes), 1)
        )
        if self.labels.dtype not in (np.int64, np.uint8) or self.labels.shape != shape:
            forms = f"int64 [{len(self.images)}] or uint8 [{len(self.images)}, {self.num_classes}]"
            raise DataError(f"labels must be {forms}, got {self.labels.dtype} {list(self.labels.shape)}")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() <= largest):
            raise DataError(f"labels must be in 0–{largest}, got {self.labels.min()}–{self.labels.max()}")
        for what, array in (("file names", self.files), ("numbers of bursts", self.bursts), ("weights", self.weights)):
            if array is not None and len(array) != len(self.labels):
                raise DataError(f"got {len(array)} {what} for {len(self.labels)} images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has any number of labels, instead of one class."""
        return bool(self.labels.dtype == np.uint8)

    @property
    def num_classes(self) -> int:
        """Number of classes, present or not."""
        return len(self.class_names)

    @property
    def image_size_px(self) -> int:
        """Height and width of every image."""
        return int(self.images.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of class names, labels, weights and pixels: two data sets have the same if and only if they are equal."""
        digest = hashlib.sha256("\0".join(self.class_names).encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        if self.weights is not None:
            digest.update(np.ascontiguousarray(self.weights).data)
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()

    def subset(self, indices: npt.NDArray[np.int64]) -> ImageDataset:
        """The images at `indices` (int64, `[M]`), copied, with the same class names."""
        more = {"files": self.files, "bursts": self.bursts, "weights": self.weights}
        taken: dict[str, Any] = {name: array[indices] for name, array in more.items() if array is not None}
        return replace(self, images=self.images[indices], labels=self.labels[indices], **taken)

    def name_of(self, row: int) -> str:
        """Name of an image for the user: its file, or its number."""
        return f"#{row}" if self.files is None else printable(self.files[row])

    def label_of(self, row: int) -> str:
        """Class of an image for the user; with several labels per image, all its labels, or `none`."""
        if not self.is_multi_label:
            return self.class_names[int(self.labels[row])]
        return ", ".join(name for name, has in zip(self.class_names, self.labels[row], strict=True) if has) or "none"

    def members(self, label: int) -> npt.NDArray[np.int64]:
        """Rows of the images of a class, int64, ascending."""
        return np.flatnonzero(self.labels[:, label] if self.is_multi_label else self.labels == label)

    def class_counts(self) -> npt.NDArray[np.int64]:
        """Number of images per class: int64, `[num_classes]`; an image with several labels counts for each."""
        return count_labels(self.labels, self.num_classes)


def join(parts: Sequence[ImageDataset]) -> ImageDataset:
    """Concatenate data sets with the same classes and image size.

    Args:
        parts: at least one. If some have weights, the images of the others have the weight 1. If some have bursts, each image of the
            others is a burst of its own. Files are kept only if all have files.
    """
    files = [part.files for part in parts if part.files is not None]
    weights = None
    if any(part.weights is not None for part in parts):
        weights = np.concatenate([np.ones(len(part), np.float32) if part.weights is None else part.weights for part in parts])
    bursts = None
    if any(part.bursts is not None for part in parts):
        numbers, first = [], 0
        for part in parts:
            numbers.append(first + (np.arange(len(part)) if part.bursts is None else part.bursts))
            first = int(numbers[-1].max(initial=first - 1)) + 1
        bursts = np.concatenate(numbers)
    return replace(
        parts[0],
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        files=np.concatenate(files) if len(files) == len(parts) else None,
        bursts=bursts,
        weights=weights,
    )


class Fingerprinted(Protocol):
    """Images with a fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Equal if and only if images and labels are equal."""


Train = TypeVar("Train", bound=Fingerprinted)


@dataclass(frozen=True)
class Splits(Generic[Train]):
    """Training, validation and test images of one data set; all have the same class names and image size.

    Attributes:
        name: the data set's name, e.g. `cifar10` or a folder's name.
        train: training images, in memory or streamed.
        val: validation images, for early stopping and the choice of the best checkpoint; `None` if `val_fraction` is 0.
        test: test images, evaluated once, on the final weights; `None` if the data set has none.
        class_descriptions: description by class name, without classes that have none. It is not part of the fingerprint, because a
            changed text changes no picture.
        source_fingerprint: fingerprint before reviewed pictures were added to the training images; empty if none were added.
    """

    name: str
    train: Train
    val: ImageDataset | None
    test: ImageDataset | None
    class_descriptions: Mapping[str, str] = field(default_factory=dict)
    source_fingerprint: str = ""

    def __iter__(self) -> Iterator[tuple[str, Train | ImageDataset]]:
        yield "train", self.train
        if self.val is not None:
            yield "val", self.val
        if self.test is not None:
            yield "test", self.test

    @property
    def dataset_fingerprint(self) -> str:
        """Fingerprint of the data set itself, without reviewed pictures: reviews arrive every day, and the data set stays the same."""
        return self.source_fingerprint or self.fingerprint

    @property
    def test_fingerprint(self) -> str:
        """Fingerprint of the test images; empty if there are none."""
        return self.test.fingerprint if self.test is not None else ""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the fingerprints of the splits."""
        return hashlib.sha256("".join(f"{name}:{part.fingerprint};" for name, part in self).encode()).hexdigest()


class DatasetSplits(Splits[ImageDataset]):
    """Splits with all images in arrays."""

"""`ImageDataset`, the form of images for training and evaluation, and its splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from cifar_ray.config import printable
from cifar_ray.errors import DataError


@dataclass(frozen=True)
class ImageDataset:
    """Labelled images of one size as plain arrays (often memory-mapped from the cache).

    Attributes:
        images: uint8, `[N, H, W, 3]`, RGB, 0–255.
        labels: int64, `[N]`, from 0 to `len(class_names) - 1`.
        class_names: one name per class, in label order.
        files: bytes, `[N]`: path of each image, relative to the folder of the data set; `None` if the images are not files.
        bursts: int64, `[N]`, equal for near-duplicates of one class, see `find_bursts`; `None` if they were not searched.
        weights: float32, `[N]`, weight of each image in the training loss; `None` if all count the same.

    Raises:
        DataError: if shapes, dtypes or labels are inconsistent.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    files: npt.NDArray[np.bytes_] | None = None
    bursts: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise DataError(f"images must be uint8 [N, H, W, 3], got {self.images.dtype} {list(self.images.shape)}")
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.images),):
            raise DataError(f"labels must be int64 [{len(self.images)}], got {self.labels.dtype} {list(self.labels.shape)}")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.class_names)):
            raise DataError(f"labels must be in 0–{len(self.class_names) - 1}, got {self.labels.min()}–{self.labels.max()}")
        for what, array in (("file names", self.files), ("numbers of bursts", self.bursts), ("weights", self.weights)):
            if array is not None and len(array) != len(self.labels):
                raise DataError(f"got {len(array)} {what} for {len(self.labels)} images")

    def __len__(self) -> int:
        return len(self.labels)

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

    def class_counts(self) -> npt.NDArray[np.int64]:
        """Number of images per class: int64, `[num_classes]`."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)


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
    """

    name: str
    train: Train
    val: ImageDataset | None
    test: ImageDataset | None

    def __iter__(self) -> Iterator[tuple[str, Train | ImageDataset]]:
        yield "train", self.train
        if self.val is not None:
            yield "val", self.val
        if self.test is not None:
            yield "test", self.test

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the fingerprints of the splits."""
        return hashlib.sha256("".join(f"{name}:{part.fingerprint};" for name, part in self).encode()).hexdigest()


class DatasetSplits(Splits[ImageDataset]):
    """Splits with all images in arrays."""

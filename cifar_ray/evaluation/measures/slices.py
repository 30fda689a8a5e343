"""Accuracy on slices of a split: by brightness, contrast, and size of the original file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cifar_ray.data.dataset import ImageDataset
from cifar_ray.metrics.intervals import accuracy_interval

_PARTS = 5
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CHUNK_PIXELS = 1 << 20
_THREADS = 8


@dataclass(frozen=True)
class Slice:
    """Images whose value of a property lies between two bounds.

    Attributes:
        low: smallest value.
        high: largest value.
        count: number of images.
        correct: number of correct predictions.
    """

    low: float
    high: float
    count: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions, 0–1."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy, within 0–1."""
        return accuracy_interval(self.correct, self.count)


def slice_by(values: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> list[Slice]:
    """Divide images into at most five slices of nearly equal size. Images with equal values are in the same slice.

    Args:
        values: the property of each image, float64 `[N]`.
        correct: whether each prediction is correct, bool `[N]`.

    Returns:
        Slices in ascending order; one slice if all values are equal, none without images.
    """
    if not len(values):
        return []
    bounds = np.unique(np.quantile(values, np.arange(1, _PARTS) / _PARTS))
    part_of = np.searchsorted(bounds, values, side="left")
    parts = [part_of == part for part in np.unique(part_of)]
    return [Slice(float(values[part].min()), float(values[part].max()), int(part.sum()), int(correct[part].sum())) for part in parts]


def properties(dataset: ImageDataset, root: Path | None) -> dict[str, npt.NDArray[np.float64]]:
    """Properties to slice by: brightness and contrast (mean and standard deviation of luma, 0–1), and the size of the original file.

    Args:
        dataset: N images.
        root: folder of the files; `None` leaves out the file sizes.

    Returns:
        Values, float64 `[N]`, by name of the property with its unit.
    """
    chunk = max(1, _CHUNK_PIXELS // dataset.image_size_px**2)
    lumas = [dataset.images[start : start + chunk].astype(np.float32) @ (_LUMA / 255) for start in range(0, len(dataset), chunk)]
    found = {
        "brightness": np.concatenate([luma.mean(axis=(1, 2), dtype=np.float64) for luma in lumas]),
        "contrast": np.concatenate([luma.std(axis=(1, 2), dtype=np.float64) for luma in lumas]),
    }
    sides_px = None if root is None else original_sides_px(dataset, root)
    if sides_px is not None and len(np.unique(sides_px)) > 1:
        found["shorter side of the file (px)"] = sides_px
    return found


def original_sides_px(dataset: ImageDataset, root: Path) -> npt.NDArray[np.float64] | None:
    """Shorter side of each original file, float64 `[N]`, from the file headers; `None` if the files are unknown or missing."""
    if dataset.files is None:
        return None
    paths = [root / os.fsdecode(name) for name in dataset.files]
    try:
        with ThreadPool(_THREADS) as pool:
            return np.array(pool.map(_shorter_side_px, paths, chunksize=64), np.float64)
    except OSError:  # the files were moved after they were decoded
        return None


def _shorter_side_px(path: Path) -> int:
    with Image.open(path) as image:
        return min(image.size)

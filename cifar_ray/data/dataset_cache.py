"""Cache of prepared data sets on the local disk: each node decodes a data set once, and every process memory-maps it.

An entry (see `local_cache`) has these files for each split: `<split>_images.npy` and `<split>_labels.npy`; `<split>_files.npy` if the
images were files; `<split>_bursts.npy` if near-duplicates were searched; `<split>_weights.npy` if the data set is a table with weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.reading.local_cache import check_space, load_or_write


class Allocate(Protocol):
    """Allocates the image array of a split in the entry that is being built."""

    def __call__(self, split: str, count: int, size_px: int) -> npt.NDArray[np.uint8]:
        """Return uint8 `[count, size_px, size_px, 3]` on disk, to fill in place; a split may use only its first rows."""


def load_or_build(entry: str, build: Callable[[Allocate], DatasetSplits]) -> DatasetSplits:
    """Load an entry; build it first if it is missing or damaged. Only one process per node builds it.

    Args:
        entry: file name of the entry; different content must have a different name.
        build: creates the splits; it puts the images of a split into the array from `Allocate`.

    Returns:
        The splits, memory-mapped; writing to the arrays changes only this process's copy.

    Raises:
        DataError: if the cache folder cannot be written, or raised by `build`.
    """
    return load_or_write(entry, _read, lambda partial: _write(partial, build))


def _read(folder: Path) -> DatasetSplits:
    about = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
    parts = {split: read_part(folder, split, tuple(about["class_names"])) for split in about["splits"]}
    return DatasetSplits(about["name"], parts["train"], parts.get("val"), parts.get("test"))


def _write(folder: Path, build: Callable[[Allocate], DatasetSplits]) -> None:
    splits = build(lambda split, count, size_px: allocate(folder, split, count, size_px))
    for split, part in splits:
        write_labels(folder, split, part)
    about = {"name": splits.name, "class_names": splits.train.class_names, "splits": [split for split, _ in splits]}
    (folder / "entry.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def read_part(folder: Path, split: str, class_names: tuple[str, ...]) -> ImageDataset:
    """One split of an entry, memory-mapped."""
    labels = np.load(folder / f"{split}_labels.npy")
    # Copy-on-write: processes share the pages, and torch sees a writable array.
    images = np.load(folder / f"{split}_images.npy", mmap_mode="c").view(np.ndarray)
    names = folder / f"{split}_files.npy"
    files = np.load(names, mmap_mode="r").view(np.ndarray) if names.exists() else None
    bursts, weights = (np.load(path) if (path := folder / f"{split}_{kind}.npy").exists() else None for kind in ("bursts", "weights"))
    return ImageDataset(images[: len(labels)], labels, class_names, files, bursts, weights)


def write_labels(folder: Path, split: str, part: ImageDataset) -> None:
    """Write labels, file names, bursts and weights of a split; its images are already in the array from `allocate`."""
    for kind, array in (("labels", part.labels), ("files", part.files), ("bursts", part.bursts), ("weights", part.weights)):
        if array is not None:
            np.save(folder / f"{split}_{kind}.npy", array)


def allocate(folder: Path, split: str, count: int, size_px: int) -> npt.NDArray[np.uint8]:
    """Create the image array of a split in the folder of an entry that is being built.

    Raises:
        DataError: if the disk has too little space.
    """
    shape = (count, size_px, size_px, 3)
    check_space(folder, int(np.prod(shape)))  # on a full disk, writing to the map would kill the process by SIGBUS
    return np.lib.format.open_memmap(folder / f"{split}_images.npy", "w+", np.uint8, shape).view(np.ndarray)

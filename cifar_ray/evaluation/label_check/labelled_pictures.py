"""All labelled pictures of a data set, from all splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.data import DatasetSplits, ImageDataset

Pixels = npt.NDArray[np.uint8]

_COMPARED_PX = 32
_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """The pictures of all splits as one sequence.

    Attributes:
        splits: result of `load_splits`.
        size_px: side of the pictures that `read` returns; other sizes are resized.
    """

    splits: DatasetSplits
    size_px: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Labels of all pictures, int64 `[N]`."""
        return np.concatenate([part.labels for _, part in self.splits])

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in label order."""
        return self.splits.train.class_names

    @cached_property
    def bursts(self) -> npt.NDArray[np.int64]:
        """Equal numbers for near-duplicates of one class in one split, int64 `[N]`."""
        found, start = [], 0
        for _, part in self.splits:
            numbers = np.arange(len(part)) if part.bursts is None else np.unique(part.bursts, return_inverse=True)[1]
            found.append(numbers + start)
            start += len(part)
        return np.concatenate(found)

    def where(self, row: int) -> tuple[str, ImageDataset, int]:
        """Name and images of the split that contains a picture, and the row of the picture in the split."""
        for name, part in self.splits:
            if row < len(part):
                return name, part, row
            row -= len(part)
        raise IndexError(row)

    def name_of(self, row: int) -> str:
        """Name of a picture for the user: its file, or its split and number if there are no files."""
        split, part, inside = self.where(row)
        return part.name_of(inside) if part.files is not None else f"{split} #{inside}"

    def image(self, row: int) -> Pixels:
        """One picture as it was loaded, uint8 `[S, S, 3]`."""
        _, part, inside = self.where(row)
        image: Pixels = part.images[inside]
        return image

    def read(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """Pictures at the input size of the network, uint8 `[n, size_px, size_px, 3]`."""
        return _resized(np.stack([self.image(row) for row in rows.tolist()]), self.size_px)

    def small(self) -> Pixels:
        """All pictures at 32 px, for the search for near-duplicates: uint8 `[N, 32, 32, 3]`."""
        return np.concatenate([_resized(block, _COMPARED_PX) for block in self._blocks()])

    def _blocks(self) -> Iterator[Pixels]:
        for _, part in self.splits:
            for start in range(0, len(part), _AT_ONCE):
                yield part.images[start : start + _AT_ONCE]


def _resized(images: Pixels, size_px: int) -> Pixels:
    if images.shape[1] == size_px:
        return images
    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, (size_px, size_px), mode="bicubic", antialias=True)
    result: Pixels = resized.permute(0, 2, 3, 1).contiguous().numpy()
    return result

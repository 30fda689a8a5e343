"""Training images on the device of a worker: all of them in memory, or streamed as each step needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar_ray.data.streamed import StreamedImages
from cifar_ray.errors import DataError


class Held:
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


class Arriving:
    """Streamed images: each requested image is taken once, in the requested order."""

    def __init__(self, dataset: StreamedImages, device: torch.device) -> None:
        self._dataset, self._device = dataset, device
        self._blocks: Iterator[npt.NDArray[np.uint8]] = iter(())
        self._rest = np.empty((0, dataset.image_size_px, dataset.image_size_px, 3), np.uint8)

    def read(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Images at `rows`, as `Held.read`; they do not count as taken."""
        return torch.from_numpy(self._dataset.pictures.read(rows)).to(self._device)

    def expect(self, shares: Iterable[Tensor]) -> None:
        """Request the images of a whole epoch, int64 `[n]` per step; then call `take` with the same indices, step by step."""
        self._rest = self._rest[:0]
        self._blocks = self._dataset.feed(torch.cat(list(shares)).cpu().numpy())

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return only the images at `indices`, otherwise as `Held.take`.

        Raises:
            DataError: if the stream ends before all requested images have arrived.
        """
        images = np.empty((len(indices), *self._rest.shape[1:]), np.uint8)
        done = 0
        while done < len(images):
            if not len(self._rest):
                block = next(self._blocks, None)
                if block is None:  # a StopIteration would become a RuntimeError in the generator `epoch`, and training retries those
                    raise DataError("the stream of training images ended before the epoch; report this as a bug")
                self._rest = block
            count = min(len(images) - done, len(self._rest))
            images[done : done + count], self._rest = self._rest[:count], self._rest[count:]
            done += count
        return torch.from_numpy(images).to(self._device), torch.arange(len(images), device=self._device)

"""Run batches that do not fit into memory in halves, and remember the size that fits."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.errors import ResourceError, is_out_of_memory

Arrays = tuple[npt.NDArray[np.float32], ...]
_logger = logging.getLogger(__name__)


class Halving:
    """Runs a function on batches. If memory runs out, it continues with half the batch size, and later calls start with this size.

    It is safe to call from several threads if the function is.

    Args:
        run: computes arrays `[N, …]` from images, uint8 `[N, S, S, 3]`; the result of an image must not depend on the other images.
    """

    def __init__(self, run: Callable[[npt.NDArray[np.uint8]], Arrays]) -> None:
        self._run = run
        self.largest: int | None = None

    def __call__(self, images: npt.NDArray[np.uint8]) -> Arrays:
        """Results for all images, `[N, …]` each.

        Raises:
            ResourceError: if there is not enough memory for one image.
        """
        if self.largest is None or len(images) <= self.largest:
            try:
                return self._run(images)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(images) <= 1:
                    raise ResourceError(f"not enough memory for one image of {images.shape[1]} px; free some, or use a CPU") from None
            # not in the except block, where the traceback keeps the memory of the failed batch alive
            self._go_on_with(len(images) // 2)
        size = max(1, min(self.largest or len(images), len(images) - 1))
        parts = [self(images[start : start + size]) for start in range(0, len(images), size)]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _go_on_with(self, size: int) -> None:
        self.largest = size if self.largest is None else min(size, self.largest)
        _logger.warning("out of memory: going on with batches of %d images", self.largest)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

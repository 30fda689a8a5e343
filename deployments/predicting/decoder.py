"""Decode pictures in threads, so that they do not block the event loop. This module does not use Ray or HTTP."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from cifar_ray.config import ResizePolicy
from cifar_ray.errors import ImageError, ImageTooLargeError
from cifar_ray.inference.preprocess import MAX_IMAGE_PIXELS, preprocess
from deployments.predicting.contract import Picture, Pixels, PixelSizeError

# At most 8 threads, because decoding a picture of 50 megapixels takes 150 MB or more.
_THREADS = min(8, os.cpu_count() or 1)
_M_MMAP_THRESHOLD = -3  # malloc.h
_MAPPED_BYTES = 1 << 20
# Decoding up to this size takes a fraction of a millisecond, no longer than handing it to a thread and back.
_THUMBNAIL_BYTES = 16_384
_THUMBNAIL_PIXELS = 96 * 96
# Always decoded in a thread: they may have many more pixels than the header states, and AVIF pictures are decoded one at a time.
_AVIF_OR_HEIC = b"ftyp"


class Decoder:
    """Decodes photos in one thread per core, and a thumbnail in the calling thread."""

    def __init__(self) -> None:
        _return_freed_memory()
        self._executor = ThreadPoolExecutor(_THREADS, "decode")

    async def decode(self, pictures: Sequence[Picture], image_size_px: int, resize_policy: ResizePolicy) -> list[Pixels | ImageError]:
        """Decode pictures; for a picture that cannot be decoded, the result contains its error.

        Args:
            pictures: either all are image files, or all are ready pixels; only the size of pixels is checked.
            image_size_px: height and width of the results.
            resize_policy: the policy that makes pictures square.

        Returns:
            For each picture, uint8 `[image_size_px, image_size_px, 3]`, or its error.

        Raises:
            PixelSizeError: if ready pixels have another size.
        """
        files = [picture for picture in pictures if isinstance(picture, bytes)]
        if not files:
            return [_check_ready(picture, image_size_px) for picture in pictures if isinstance(picture, np.ndarray)]
        if len(files) == 1 and len(files[0]) <= _THUMBNAIL_BYTES and files[0][4:8] != _AVIF_OR_HEIC:
            with suppress(ImageTooLargeError):  # few bytes can hold many pixels
                return [_decode(files[0], image_size_px, resize_policy, _THUMBNAIL_PIXELS)]
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(self._executor, _decode_photo, data, image_size_px, resize_policy) for data in files)
        )


def _check_ready(pixels: Pixels, image_size_px: int) -> Pixels:
    height, width, _ = pixels.shape
    if (height, width) != (image_size_px, image_size_px):
        raise PixelSizeError(
            f"the pixels are {height} × {width} (height × width), and the model takes {image_size_px} × {image_size_px}; "
            "resize them, or send picture files, which the server resizes"
        )
    return pixels


def _return_freed_memory() -> None:
    """Make the C library return the memory of large pictures to the system: map each large block on its own.

    By default, the C library keeps freed blocks of similar size: after a few pictures of 50 megapixels, it kept a gigabyte.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _decode(data: bytes, image_size_px: int, resize_policy: ResizePolicy, max_pixels: int) -> Pixels | ImageError:
    try:
        return preprocess(data, image_size_px, resize_policy, max_pixels)
    except ImageTooLargeError:
        raise
    except ImageError as error:
        return error


def _decode_photo(data: bytes, image_size_px: int, resize_policy: ResizePolicy) -> Pixels | ImageError:
    try:
        return _decode(data, image_size_px, resize_policy, MAX_IMAGE_PIXELS)
    except ImageTooLargeError as error:
        return error

"""From what a client sends to what a network takes; training decodes its files through the same two functions."""

from __future__ import annotations

import base64
import binascii

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy
from cifar_ray.data.decode import decode_image, fit
from cifar_ray.errors import ImageError, ImageTooLargeError

MAX_IMAGE_BYTES = 10_000_000
MAX_IMAGE_PIXELS = 50_000_000


def preprocess(data: bytes, image_size_px: int, resize_policy: ResizePolicy, max_pixels: int = MAX_IMAGE_PIXELS) -> npt.NDArray[np.uint8]:
    """Decodes one picture and makes it square, as the manifest says.

    Args:
        data: an image file of any accepted format, size and mode.
        image_size_px: height and width that the network takes.
        resize_policy: how other aspect ratios become square.
        max_pixels: width times height above which nothing is decoded.

    Returns:
        uint8 `[image_size_px, image_size_px, 3]`, RGB.

    Raises:
        ImageTooLargeError: over 10 MB or over `max_pixels`; nothing was decoded.
        ImageError: empty, broken or of a format that is not accepted.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageTooLargeError(f"the picture has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are accepted")
    return fit(decode_image(data, max_pixels), image_size_px, resize_policy)


def decode_base64(text: str) -> bytes:
    """The bytes in base64 (RFC 4648, section 4, padded) or in a `data:…;base64,…` URI (RFC 2397).

    Raises:
        ImageError: for any character, padding or kind of URI beside these.
    """
    payload = text
    if text[:5].lower() == "data:":
        header, comma, payload = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ImageError("the data URI is not base64; send data:image/png;base64,… or plain base64")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the picture is not valid base64: {error}") from None

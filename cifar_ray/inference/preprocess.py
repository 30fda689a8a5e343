"""Convert a client's picture to the input of a network, with the same function that training uses."""

from __future__ import annotations

import base64
import binascii

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy
from cifar_ray.data.decode import decode_square
from cifar_ray.errors import ImageError, ImageTooLargeError

MAX_IMAGE_BYTES = 10_000_000
MAX_IMAGE_PIXELS = 50_000_000


def preprocess(data: bytes, image_size_px: int, resize_policy: ResizePolicy, max_pixels: int = MAX_IMAGE_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode one picture and make it square.

    Args:
        data: content of an image file in any supported format, size and colour mode.
        image_size_px: height and width of the network's input.
        resize_policy: policy for other aspect ratios.
        max_pixels: maximum width × height, px; checked before decoding.

    Returns:
        uint8 `[image_size_px, image_size_px, 3]`, RGB.

    Raises:
        ImageTooLargeError: if the picture exceeds 10 MB or `max_pixels`; it is then not decoded.
        ImageError: if the picture is empty, damaged or in an unsupported format.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageTooLargeError(f"the picture has {len(data):,} bytes; the maximum is {MAX_IMAGE_BYTES:,}")
    return decode_square(data, image_size_px, resize_policy, max_pixels)


def decode_base64(text: str) -> bytes:
    """Decode padded base64 (RFC 4648, section 4) or a `data:…;base64,…` URI (RFC 2397).

    White space is ignored, because GNU `base64`, MIME and Android break the text into lines.

    Raises:
        ImageError: for an invalid character, invalid padding or another kind of URI.
    """
    payload = text
    if text[:5].lower() == "data:":
        header, comma, payload = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ImageError("the data URI has no base64 content; send data:image/png;base64,… or plain base64")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the picture is not valid base64 ({error}); encode it with: base64 -w0 FILE") from None

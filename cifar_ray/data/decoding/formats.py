"""Picture formats: names, suffixes, and opening a picture of any of them without decoding its pixels."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
import warnings
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features

from cifar_ray.data.decoding import png
from cifar_ray.data.decoding.depths import add_big_endian_white_is_zero, scale_transparency
from cifar_ray.data.decoding.special_files import open_regular
from cifar_ray.errors import ImageError

_HAS_AVIF = "avif" in features.modules and features.check_module("avif")  # from Pillow 11.3, where it was built with libavif

# Pillow's names. HEIC is not in this list because it is registered with Pillow only when a HEIC picture is opened.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(("AVIF",) if _HAS_AVIF else ()))
# Names for messages
FORMAT_NAMES = f"JPEG, PNG, WebP, BMP, GIF, TIFF,{' AVIF,' if _HAS_AVIF else ''} HEIC"
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")

_HEIF = "HEIF"  # the container of HEIC, as pi_heif names its format
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_CONTAINER_BRANDS = frozenset((b"mif1", b"msf1"))
_BIG_ENDIAN_TIFF = b"MM\0"
_HEAD_BYTES = 64

_QUIET = ("ignore", None, Warning, re.compile(r"(PIL|pi_heif)\."), 0)


@contextlib.contextmanager
def open_picture(source: bytes | Path) -> Iterator[Image.Image]:
    """Open a picture and read its header.

    Pillow gets a stream, never a path: from a path, it maps some files into memory and then does not rotate them.

    Args:
        source: content or path of a picture.

    Yields:
        A picture whose pixels are not decoded yet.

    Raises:
        UnidentifiedImageError: if it is in none of the formats.
        ImageError: if it is not a regular file, or if it is HEIC and the package for it is not installed.
    """
    _silence_decoders()
    with BytesIO(source) if isinstance(source, bytes) else open_regular(source) as stream, _open(stream) as image:
        scale_transparency(image)
        yield image


def _open(stream: BinaryIO) -> Image.Image:
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    if head.startswith(png.SIGNATURE):
        return _open_png(stream.read())
    if head.startswith(_BIG_ENDIAN_TIFF):
        add_big_endian_white_is_zero()
    try:
        return Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        if not _is_heic(head):
            raise
    _register_heic()
    stream.seek(0)
    return Image.open(stream, formats=(_HEIF,))


def _open_png(content: bytes) -> Image.Image:
    essential, long_profile = png.strip_chunks(content)
    image = Image.open(BytesIO(essential), formats=("PNG",))
    if long_profile:
        image.info["icc_profile"] = long_profile
    return image


def _is_heic(head: bytes) -> bool:
    """Whether the file type box (ISO 14496-12, section 4.3) names HEVC pictures, as its major brand or as a compatible brand."""
    if head[4:8] != b"ftyp":
        return False
    brands = {head[start : start + 4] for start in range(16, min(len(head), int.from_bytes(head[:4])), 4)}
    return head[8:12] in _HEIC_BRANDS or (head[8:12] in _CONTAINER_BRANDS and bool(brands & _HEIC_BRANDS))


def _register_heic() -> None:
    """Register HEIC with Pillow; called only for a HEIC picture, because few users need it and the package is optional."""
    try:
        from pi_heif import register_heif_opener
    except ImportError:
        raise ImageError("HEIC needs: pip install 'cifar-ray[heic]'") from None
    # One thread per picture, because several pictures are decoded in parallel.
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


def _silence_decoders() -> None:
    """Silence warnings about odd metadata and large sizes; `decode` raises an error where it matters.

    `warnings.catch_warnings` changes the filters of the whole process and is not thread-safe, so this filter is added once
    and stays.
    """
    _silence_native_code()
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)


@cache
def _silence_native_code() -> None:
    """Remove the handlers with which libtiff writes to stderr directly, past Python: an odd TIFF could fill the log of a server.

    The functions for this are looked up through Pillow's own library, which loads libtiff. They are not found where libtiff is linked
    statically (Windows), so there libtiff still writes.
    """
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    with contextlib.suppress(OSError, AttributeError):
        libraries = ctypes.CDLL(Image.core.__file__)  # type: ignore[attr-defined]  # Pillow's types do not list it
        for set_handler in (libraries.TIFFSetWarningHandler, libraries.TIFFSetErrorHandler):
            set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
            set_handler(None)

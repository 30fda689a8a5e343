"""Pictures whose samples have not 8 bits: corrections where Pillow drops or misreads bits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile

# Usual depths of sensors and displays, in bits
DEPTHS = (8, 10, 12, 14, 16)
_STEPS = {"L;2": 85, "L;4": 17}
_COLOURS = {"RGB": 3, "RGBA": 3, "LA": 1}
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_STRIP_PIXELS = 1 << 20
# Tags of TIFF and their values
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def scale_transparency(image: Image.Image) -> None:
    """Scale the transparent level of an opened PNG of 2 or 4 bits to 0–255, as Pillow scales its pixels."""
    level, step = image.info.get("transparency"), _STEPS.get(raw_mode(image))
    if isinstance(level, int) and step:
        image.info["transparency"] = level * step


def raw_mode(image: Image.Image) -> str:
    """How the samples of an opened picture are stored, in Pillow's terms, for example `RGB;16B`; empty if Pillow does not say."""
    arguments = next((tile[3] for tile in getattr(image, "tile", ())), None)
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def add_big_endian_white_is_zero() -> None:
    """Let Pillow open TIFFs of 16-bit grey where 0 is white in big-endian order, as it does in little-endian order."""
    from PIL.TiffImagePlugin import MM, OPEN_INFO

    OPEN_INFO.setdefault((MM, 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


def is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white in a decoded TIFF of 16 bits; Pillow inverts TIFFs of up to 8 bits itself."""
    return image.mode.startswith("I;16") and _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO


def is_unsigned(image: Image.Image) -> bool:
    """Whether the 32-bit integers of a TIFF are unsigned; Pillow decodes all of them as signed."""
    return image.mode == "I" and _tiff_tag(image, _BITS) == (32,) and _tiff_tag(image, _SAMPLE_FORMAT) in (None, (_UNSIGNED,))


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag)


def spare_bits(highest: int) -> int:
    """Right shift that reduces 16-bit samples to 8 bits, from the smallest usual depth that holds the highest sample.

    Cameras and X-ray devices store 10–14 bits in 16.
    """
    return next(depth for depth in DEPTHS if highest < 1 << depth) - DEPTHS[0]


def needs_low_bytes(image: Image.Image, stored: str) -> bool:
    """Whether the low bytes of 16-bit colours matter; Pillow keeps only the high bytes.

    They matter if one exact colour is transparent, or if the values use at most 14 bits.
    """
    if image.mode not in _COLOURS or stored[-3:] not in _OTHER_BYTE:
        return False
    return "transparency" in image.info or spare_bits(_highest(image) << 8 | 255) < spare_bits(0xFFFF)


def add_low_bytes(image: Image.Image, low: Image.Image) -> Image.Image:
    """Scale a picture in 16-bit colour from its real depth to 8 bits; a transparent colour becomes an alpha channel.

    Args:
        image: the decoded picture, which has only the high bytes; see `needs_low_bytes`.
        low: the same picture, opened but not decoded; its low bytes are decoded here.
    """
    opened = cast("ImageFile.ImageFile", low)
    if raw_mode(low) == "LA;16B":
        # Pillow cannot decode the low bytes of 16-bit grey with alpha. Decoded as 8-bit RGBA, the channels are the four bytes of a pixel.
        opened.tile = [tile._replace(args="RGBA") for tile in opened.tile]
        grey, alpha = low.getchannel(1), low.getchannel(3)
        low = Image.merge("RGBA", (grey, grey, grey, alpha))
    else:
        opened.tile = [tile._replace(args=_other_byte(tile.args)) for tile in opened.tile]
        low.load()
    colours, highest, clear = _COLOURS[image.mode], _highest(image), image.info.pop("transparency", None)
    shift = spare_bits(highest << 8 | 255 if highest else _highest(low))
    rows = max(1, _STRIP_PIXELS // image.width)
    deepened = image.convert("RGBA") if clear is not None else image
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        pixels = np.array(deepened.crop(box))
        values = np.asarray(image.crop(box)).astype(np.uint16) << 8 | np.asarray(low.crop(box))
        pixels[..., :colours] = values[..., :colours] >> shift
        if clear is not None:
            pixels[..., 3] = np.where((values == np.array(clear, np.uint16)).all(-1), 0, 255)
        deepened.paste(Image.fromarray(pixels, deepened.mode), (0, top))
    return deepened


def _other_byte(arguments: Any) -> Any:
    """Change a decoder's arguments so that it reads the other byte of each sample."""
    if isinstance(arguments, tuple):
        return (_other_byte(arguments[0]), *arguments[1:])
    return arguments[:-3] + _OTHER_BYTE[arguments[-3:]]


def _highest(image: Image.Image) -> int:
    """The highest value of the colours, which come before an alpha channel."""
    extrema = cast("Sequence[tuple[int, int]]", image.getextrema())
    return max(high for _, high in extrema[: _COLOURS[image.mode]])

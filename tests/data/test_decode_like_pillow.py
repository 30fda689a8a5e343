"""Every mode and option that Pillow can write in the formats we take, decoded as Pillow itself decodes it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cifar_ray.data.decode import decode_image
from cifar_ray.data.decoding.formats import FORMATS

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B", "I;16L")
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "JPEG": ({}, {"quality": 98, "subsampling": 0}, {"progressive": True}, {"quality": 5}, {"icc_profile": b"no profile"}, {"dpi": (9, 9)}),
    "PNG": ({}, {"optimize": True}, {"compress_level": 0}, {"bits": 4}, {"icc_profile": b"no profile"}),
    "WEBP": ({}, {"lossless": True}, {"quality": 5}, {"lossless": True, "exact": True}, {"icc_profile": b"no profile"}),
    "BMP": ({}, {"dpi": (300, 300)}),
    "AVIF": ({}, {"quality": 100, "subsampling": "4:4:4"}, {"quality": 5}, {"icc_profile": b"no profile"}),
    "GIF": ({}, {"interlace": False}, {"transparency": 0}, {"optimize": True}, {"comment": b"a" * 999}),
    "TIFF": (
        {},
        *(
            {"compression": name}
            for name in ("tiff_deflate", "tiff_lzw", "packbits", "jpeg", "group3", "group4", "tiff_ccitt", "zstd", "webp")
        ),
        {"tiffinfo": {317: 2}, "compression": "tiff_lzw"},
        {"icc_profile": b"no profile"},
    ),
}
WIDTH, HEIGHT = 37, 23


def picture(mode: str) -> Image.Image:
    """Smooth colours, some noise, and every degree of transparency."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH, 4))
    values = np.stack([x * 6, y * 10, (x + y) * 3, 255 - x * 6], -1) + noise
    image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    if mode.startswith("I;16"):
        return Image.frombytes(mode, image.size, grey.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode in ("I", "F"):
        return Image.fromarray(grey.astype(np.int32)) if mode == "I" else Image.fromarray(grey.astype(np.float32) / 65535)
    if mode == "PA":
        return image.convert("RGB").convert("P").convert("PA")
    return (
        image.convert("LA").convert(mode)
        if mode == "La"
        else image.convert("RGB").convert(mode)
        if mode in ("LAB", "HSV")
        else image.convert(mode)
    )


def written() -> list[Any]:
    """What Pillow agrees to write, under readable names."""
    cases = []
    for kind in FORMATS:
        for mode in MODES:
            for options in OPTIONS[kind]:
                buffer = io.BytesIO()
                try:
                    picture(mode).save(buffer, kind, **options)
                except (OSError, ValueError, RuntimeError, SystemError, KeyError, TypeError):
                    continue
                name = "-".join([kind, mode, *(f"{key}={str(value)[:12]}" for key, value in options.items())])
                cases.append(pytest.param(buffer.getvalue(), id=name))
    return cases


CASES = written()


def reference(data: bytes) -> npt.NDArray[np.float64]:
    """By Pillow's own conversions; transparency in plain arithmetic, and 16 bits divided by 257."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        values = np.asarray(image, np.float64)
        if image.mode.startswith(("I", "F")):
            grey = values * 255 if image.mode == "F" else values / 257
            return np.repeat(grey[..., None], 3, -1)
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"), np.float64)
            opacity = rgba[..., 3:] / 255
            return rgba[..., :3] * opacity + 255 * (1 - opacity)
        return np.asarray(image.convert("RGB"), np.float64)


def test_there_are_many_of_them() -> None:
    assert len(CASES) > 150
    assert {case.id.split("-")[0] for case in CASES} == set(FORMATS)


@pytest.mark.parametrize("data", CASES)
def test_it_is_decoded_like_pillow_to_within_one_level(data: bytes) -> None:
    decoded = decode_image(data)
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded, np.float64) - reference(data)).max() <= 1

"""Decode one picture. Training and serving use the same two functions, so both preprocess identically."""

from __future__ import annotations

import re
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cifar_ray.config import ResizePolicy
from cifar_ray.errors import ImageError, ImageTooLargeError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

# Part of every cache key: increase it when the pixels from decode_image or fit change.
DECODER_VERSION = 1

# Each scan of a progressive JPEG covers all pixels, and a few bytes can describe one: 10 MB of scans take minutes to decode.
# Cameras and programs write about ten scans.
_MAX_JPEG_SCANS = 100
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # without those that stand alone: TEM, RST0–7, SOI
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
# Pictures are processed in strips of this many pixels: whole ones would block other threads in Pillow and numpy, or need much memory.
_STRIP_PIXELS = 1 << 20

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUIET_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode_image(source: bytes | Path, max_pixels: int = 50_000_000) -> Image.Image:
    """Decode a picture of any size and colour mode to upright RGB.

    It takes the first frame of an animation, applies EXIF rotation, and puts transparent pixels on white. It scales 16-bit grey by
    its full range, and 32-bit grey by the smallest of 1, 255 and 65535 that holds its values, else from lowest to highest.

    Args:
        source: content or path of a picture.
        max_pixels: maximum width times height, checked in the header before decoding.

    Returns:
        An image of mode RGB.

    Raises:
        ImageTooLargeError: if there are more than `max_pixels`.
        ImageError: if the picture is missing, empty, truncated, damaged, built to decode slowly, or not in one of `FORMATS`.
    """
    _silence_pillow()
    name = str(source) if isinstance(source, Path) else "picture"
    try:
        return _decode(source, max_pixels)
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"{name}: the maximum is {max_pixels:,} pixels; reduce its size") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: empty, damaged or in an unsupported format. Supported: JPEG, PNG, WebP, BMP, GIF, TIFF") from None
    # Pillow's decoders raise many exceptions for damaged data: OSError, SyntaxError, struct.error, OverflowError, zlib.error…
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{name}: cannot be decoded ({reason})") from None


def _decode(source: bytes | Path, max_pixels: int) -> Image.Image:
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise Image.DecompressionBombError
        if isinstance(source, bytes) and image.format in ("JPEG", "MPO") and _has_too_many_scans(source):
            raise OSError(f"the JPEG has more than {_MAX_JPEG_SCANS} scans")
        image.load()
        return _upright(_to_rgb(image), image)


def _has_too_many_scans(jpeg: bytes) -> bool:
    """Count the scans up to the end of the image (ITU T.81, annex B): not in embedded thumbnails, nor in a video after the end."""
    scans, position = 0, 0
    while (marker := _MARKER.search(jpeg, position)) is not None and marker[1][0] != _END_OF_IMAGE:
        scans += marker[1][0] == _START_OF_SCAN
        if scans > _MAX_JPEG_SCANS:
            return True
        position = marker.end() + max(2, int.from_bytes(jpeg[marker.end() : marker.end() + 2]))
    return False


def fit(image: Image.Image, size_px: int, policy: ResizePolicy) -> npt.NDArray[np.uint8]:
    """Make an image square, keeping its aspect ratio, with antialiased bicubic resampling.

    Args:
        image: RGB, any size.
        size_px: side of the result; an image of this size is returned unchanged.
        policy: `pad` shows the whole image, centred on black; `crop` shows its largest centred square.

    Returns:
        uint8, `[size_px, size_px, 3]`, writable.
    """
    width, height = image.size
    if width == height or policy == "crop":
        return _cropped(image, size_px)
    scale = size_px / max(width, height)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (size_px - fitted[0]) // 2, (size_px - fitted[1]) // 2
    square = np.zeros((size_px, size_px, 3), np.uint8)
    square[top : top + fitted[1], left : left + fitted[0]] = np.asarray(_resize(image, fitted, (0, 0, width, height)))
    return square


def _cropped(image: Image.Image, size_px: int) -> npt.NDArray[np.uint8]:
    width, height = image.size
    side = min(width, height)
    if (width, height) != (size_px, size_px):
        # Crop during resampling: resizing a 1×N strip first would make a huge image.
        left, top = (width - side) / 2, (height - side) / 2
        image = _resize(image, (size_px, size_px), (left, top, left + side, top + side))
    return np.array(image)


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    # A gap of 3 averages whole blocks of a photo first: no visible difference (Pillow's documentation), several times faster.
    return image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretched(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rows = max(1, _STRIP_PIXELS // image.width)
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return flat


def _stretched(values: npt.NDArray[np.int32 | np.float32]) -> npt.NDArray[np.uint8]:
    """Scale grey `[H, W]` to 0–255, some rows at a time: in double precision, 50 megapixels would take a gigabyte."""
    rows = max(1, _STRIP_PIXELS // values.shape[1])
    starts = range(0, len(values), rows)

    def finite(start: int) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return np.nan_to_num(values[start : start + rows].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)

    extremes = [(block.min(), block.max()) for block in map(finite, starts)]
    low, high = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            low, high = 0.0, top
            break
    stretched = np.empty(values.shape, np.uint8)
    for start in starts:
        stretched[start : start + rows] = ((finite(start) - low) * (255 / ((high - low) or 1))).round()
    return stretched


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(original.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata of an intact picture
        turn = None
    if turn is None:
        return image
    image = image.transpose(turn)
    image.info.clear()  # so that nobody applies the EXIF rotation again
    return image


def _silence_pillow() -> None:
    """Silence Pillow's warnings about odd metadata and large sizes; `decode_image` raises what matters.

    `warnings.catch_warnings` changes the filters of the whole process and is not thread-safe, so this filter is added once
    and stays.
    """
    if _QUIET_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET_PILLOW[3].pattern)

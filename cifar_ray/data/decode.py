"""Decode one picture, and make it square. Training and serving use the same function, `decode_square`, so both get the same pixels."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cifar_ray.config import ResizePolicy
from cifar_ray.data.decoding import depths, jpeg
from cifar_ray.data.decoding.colours import to_srgb
from cifar_ray.data.decoding.formats import FORMAT_NAMES, open_picture
from cifar_ray.errors import ImageError, ImageTooLargeError

# Part of every cache key: increase it when the pixels from decode_square, or what find_bursts finds, change.
DECODER_VERSION = 4

_MAX_PIXELS = 50_000_000
# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if each side then still has at least this many times the pixels of the result.
_SPARE = 2

# libavif decodes up to 268 megapixels and scales them down, even if the header states a smaller size. AVIF pictures are decoded one at a
# time, so that several hostile ones do not exhaust the memory. This costs little: libavif uses all cores for one picture.
_ONE_AVIF = threading.Lock()

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
# Each turn in `_UPRIGHT` is a transposition, then a flip along x, then a flip along y; these are the turns that contain each of the three.
_TRANSPOSES = (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)
_FLIPS_X = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE)
_FLIPS_Y = (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE)

# Left, top, right and bottom of a part of an image, in pixels
Box = tuple[float, float, float, float]


def decode_image(source: bytes | Path, max_pixels: int = _MAX_PIXELS) -> Image.Image:
    """Decode a picture of any size and colour mode to upright RGB in sRGB, with all its pixels.

    An animation gives its first frame. EXIF rotation and the ICC profile are applied. Transparent pixels are put on white; see `to_srgb`.

    Args:
        source: content or path of a picture.
        max_pixels: maximum width times height, checked in the header before decoding.

    Returns:
        An image of mode RGB.

    Raises:
        ImageTooLargeError: if there are more than `max_pixels`.
        ImageError: if the picture is missing, empty, truncated, damaged, built to decode slowly, or in an unsupported format.
    """
    with _as_image_error(source, max_pixels):
        return _decode(source, max_pixels)[0]


def decode_square(
    source: bytes | Path, size_px: int, policy: ResizePolicy, max_pixels: int = _MAX_PIXELS, name: str = ""
) -> npt.NDArray[np.uint8]:
    """Decode a picture as `decode_image` does and make it square as `fit` does, several times faster for a large JPEG.

    A JPEG much larger than the square is decoded at 1/2, 1/4 or 1/8 of its size, which leaves at least twice the pixels that the
    result shows on each side. Other pictures give exactly the pixels of `fit(decode_image(…), …)`.

    Args:
        source: content or path of a picture.
        size_px: side of the result.
        policy: see `fit`.
        max_pixels: maximum width times height, checked in the header before decoding.
        name: location of the picture for error messages; default: its path. Content without a name counts as an upload, which may be
            hostile and gets more checks.

    Returns:
        uint8, `[size_px, size_px, 3]`, writable.

    Raises:
        ImageTooLargeError, ImageError: as `decode_image`.
    """
    with _as_image_error(source, max_pixels, name):
        image, box = _decode(source, max_pixels, (size_px, policy), is_upload=not name)
        return fit(image, size_px, policy, box)


@contextlib.contextmanager
def _as_image_error(source: bytes | Path, max_pixels: int, name: str = "") -> Iterator[None]:
    """Turn every error of decoding into an `ImageError` of one line that names the picture."""
    name = name or (str(source) if isinstance(source, Path) else "picture")
    try:
        yield
    except Image.DecompressionBombError:
        raise ImageTooLargeError(f"{name}: the maximum is {max_pixels:,} pixels; reduce its size") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: empty, damaged or in an unsupported format. Supported: {FORMAT_NAMES}") from None
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    # Decoders raise many exceptions for damaged data: OSError, SyntaxError, struct.error, OverflowError, zlib.error…
    except Exception as error:
        unnamed = type(error).__name__ if isinstance(error, MemoryError) else "damaged"
        reason = " ".join(str(error).split())[:200] or unnamed
        raise ImageError(f"{name}: cannot be decoded ({reason})") from None


def _decode(
    source: bytes | Path, max_pixels: int, wanted: tuple[int, ResizePolicy] | None = None, *, is_upload: bool = True
) -> tuple[Image.Image, Box]:
    """Decode to upright RGB, at a fraction of the size if the `wanted` square allows it; returns the box that shows the picture, too."""
    try:
        return _decode_as_it_is(source, max_pixels, wanted, is_upload)
    except OSError:  # raised for truncated pictures, among others
        whole = _without_end_marker(source, max_pixels, wanted)
        if whole is None:
            raise
        return whole


def _without_end_marker(source: bytes | Path, max_pixels: int, wanted: tuple[int, ResizePolicy] | None) -> tuple[Image.Image, Box] | None:
    """Decode a JPEG that is complete except for its end marker; `None` for any other picture."""
    content = source.read_bytes() if isinstance(source, Path) else source
    try:
        ways = [_decode_as_it_is(ended, max_pixels, wanted, is_upload=True) for ended in jpeg.end_marker_variants(content)]
    except OSError:
        return None
    return ways[0] if ways and ways[0][0].tobytes() == ways[1][0].tobytes() else None


def _decode_as_it_is(
    source: bytes | Path, max_pixels: int, wanted: tuple[int, ResizePolicy] | None, is_upload: bool
) -> tuple[Image.Image, Box]:
    with open_picture(source) as image:
        if image.width * image.height > max_pixels:
            raise Image.DecompressionBombError
        if is_upload and isinstance(source, bytes) and image.format in ("JPEG", "MPO") and jpeg.has_too_many_scans(source):
            raise OSError(f"the JPEG has more than {jpeg.MAX_SCANS} scans")
        box = None if wanted is None else _shrink(image, *wanted)
        stored = depths.raw_mode(image)
        with _ONE_AVIF if image.format == "AVIF" else contextlib.nullcontext():
            image.load()
        return _upright(to_srgb(_deepened(image, stored, source)), box or (0, 0, *image.size), image)


def _deepened(image: Image.Image, stored: str, source: bytes | Path) -> Image.Image:
    """Add the low bytes of 16-bit colours to a decoded picture, where they matter."""
    if not depths.needs_low_bytes(image, stored):
        return image
    with open_picture(source) as low:
        return depths.add_low_bytes(image, low)


def _shrink(image: Image.Image, size_px: int, policy: ResizePolicy) -> Box | None:
    """Set an opened JPEG to be decoded at a fraction of its size, if it has many more pixels than the square needs.

    Returns:
        The box of the smaller picture that shows the whole original; pixels of the last column and row may lie partly outside the box.
        `None` if the picture is decoded at full size.
    """
    width, height = image.size
    least = [_SPARE * side for side in (_fitted(width, height, size_px) if policy == "pad" else (size_px, size_px))]
    if width < 2 * least[0] or height < 2 * least[1]:
        return None
    drafted = image.draft(None, (least[0], least[1]))  # does nothing for other formats
    return None if drafted is None else drafted[1]


def _fitted(width: float, height: float, size_px: int) -> tuple[int, int]:
    """Width and height of the largest picture with the aspect ratio of `width` and `height` that fits into a square, px."""
    scale = size_px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def fit(image: Image.Image, size_px: int, policy: ResizePolicy, box: Box | None = None) -> npt.NDArray[np.uint8]:
    """Make an image square with antialiased bicubic resampling.

    Args:
        image: RGB, any size.
        size_px: side of the result; an image of this size is returned unchanged.
        policy: `pad` shows the whole image, centred on black; `crop` shows its largest centred square; `squash` stretches the whole
            image to the square and ignores its aspect ratio.
        box: left, top, right and bottom of the part to show; default: the whole image.

    Returns:
        uint8, `[size_px, size_px, 3]`, writable.
    """
    left, top, right, bottom = box = box or (0, 0, *image.size)
    width, height = right - left, bottom - top
    if policy == "crop":
        # Crop during resampling: resizing a 1×N strip first would make a huge image.
        side = min(width, height)
        left, top = left + (width - side) / 2, top + (height - side) / 2
        box = (left, top, left + side, top + side)
    if width == height or policy != "pad":
        return np.array(_resize(image, (size_px, size_px), box))
    fitted = _fitted(width, height, size_px)
    left_px, top_px = (size_px - fitted[0]) // 2, (size_px - fitted[1]) // 2
    square = np.zeros((size_px, size_px, 3), np.uint8)
    square[top_px : top_px + fitted[1], left_px : left_px + fitted[0]] = np.asarray(_resize(image, fitted, box))
    return square


def _resize(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    if image.size == size and box == (0, 0, *size):
        return image
    # A gap of 3 averages whole blocks of a photo first: no visible difference (Pillow's documentation), several times faster.
    return image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _upright(image: Image.Image, box: Box, original: Image.Image) -> tuple[Image.Image, Box]:
    """Apply the EXIF rotation of the original to an image and to a box in it."""
    try:
        turn = _UPRIGHT.get(original.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata of an intact picture
        turn = None
    if turn is None:
        return image, box
    image = image.transpose(turn)
    image.info.clear()  # so that nobody applies the EXIF rotation again
    return image, _turned(box, turn, image.size)


def _turned(box: Box, turn: Image.Transpose, size: tuple[int, int]) -> Box:
    """Map a box of an image to the coordinates of the turned image, whose size is `size`."""
    left, top, right, bottom = box
    if turn in _TRANSPOSES:
        left, top, right, bottom = top, left, bottom, right
    if turn in _FLIPS_X:
        left, right = size[0] - right, size[0] - left
    if turn in _FLIPS_Y:
        top, bottom = size[1] - bottom, size[1] - top
    return left, top, right, bottom

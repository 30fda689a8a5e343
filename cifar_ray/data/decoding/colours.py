"""Colours of a decoded picture: any mode and ICC profile to RGB in sRGB."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from cifar_ray.data.decoding.depths import DEPTHS, is_inverted, is_unsigned, spare_bits

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

# Pictures are processed in strips of this many pixels: a whole picture would block other threads in Pillow and NumPy, or need much memory.
_STRIP_PIXELS = 1 << 20

# Colour space in the header of an ICC profile → Pillow's mode
_PROFILED = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_GREY_MODES = ("L", "LA", "La", "1")
_NO_PROFILE_MODES = ("I", "F", "LAB", "HSV")
MAX_PROFILE_BYTES = 4 << 20  # profiles for offset printing have 0.5–3 MB
_CACHED_PROFILES = 16
_SRGB_GAMMA = 2.2
_SAME_GAMMA = 0.05  # libpng's threshold
_SAME_LEVELS = 2  # sRGB profiles of different makers differ by this much


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a picture to RGB, with its ICC profile to sRGB, and put transparent pixels on white.

    16-bit grey is scaled from the smallest depth of 8, 10, 12, 14 and 16 bits that holds its values. 32-bit grey is scaled from 0–1 or the
    smallest of these depths; if its values fit none, from its lowest to its highest value. A profile that is damaged, or describes other
    channels than the picture has, is ignored. Without a profile, the gamma of a PNG is applied as libpng does.

    Args:
        image: decoded, any mode; its pixels may be changed.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 128 < len(profile) <= MAX_PROFILE_BYTES:
        return _to_rgb(image)
    mode = _PROFILED.get(profile[16:20])
    transform = _transform_to_srgb(profile, mode) if mode == _channels(image) and mode is not None else None
    if transform is None:
        return _to_rgb(image)
    if mode == "CMYK":
        return transform.apply(image)
    rgb = _to_rgb(image)
    return transform.apply(rgb.convert("L")) if mode == "L" else transform.apply_in_place(rgb)


def _channels(image: Image.Image) -> str:
    """The mode that an ICC profile of this picture must describe; empty for modes without profiles."""
    if image.mode in _GREY_MODES:
        return "L"
    if image.mode == "CMYK":
        return "CMYK"
    return "" if image.mode.startswith("I;16") or image.mode in _NO_PROFILE_MODES else "RGB"


@lru_cache(_CACHED_PROFILES)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """Build the transform to sRGB (relative colorimetric, black point compensation); `None` if the profile is sRGB or cannot be used.

    A transform is safe to use in several threads at once: LittleCMS does not change it.
    """
    from PIL import ImageCms

    try:
        transform = ImageCms.buildTransform(
            ImageCms.getOpenProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return transform if isinstance(transform, ImageCms.ImageCmsTransform) and not _changes_nothing(transform, mode) else None
    except Exception:  # a damaged profile of an intact picture
        return None


def _changes_nothing(transform: ImageCmsTransform, mode: str) -> bool:
    """Whether a transform changes no colour by more than rounding, tested on a grid over the whole colour space."""
    if mode == "CMYK":
        return False
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3)
    colours = np.arange(256, dtype=np.uint8)[None] if mode == "L" else cube
    converted = np.asarray(transform.apply(Image.fromarray(colours)), np.int16)
    return bool(np.abs(converted - (colours[..., None] if mode == "L" else colours)).max() <= _SAME_LEVELS)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not {"transparency", "gamma"} & image.info.keys():
        return image
    exponent = _exponent(image)
    if image.mode.startswith("I;16"):
        levels = _of_16_bits(np.asarray(image), exponent, image.info.get("transparency"))
        return Image.fromarray(255 - levels if is_inverted(image) else levels).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        return Image.fromarray(_stretched(values.view(np.uint32) if is_unsigned(image) else values)).convert("RGB")
    colours = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if exponent != 1:
        levels = (255 * np.linspace(0, 1, 256) ** exponent).round().astype(int).tolist()
        colours = colours.point(levels * 3 + list(range(256)) * (len(colours.mode) - 3))
    return _on_white(colours) if colours.mode == "RGBA" else colours


def _exponent(image: Image.Image) -> float:
    """Exponent of the gamma correction of a PNG for colours in 0–1; 1 with an sRGB chunk, a profile, or a gamma close to that of sRGB."""
    gamma = image.info.get("gamma", 0)
    if image.format != "PNG" or gamma <= 0 or "srgb" in image.info or image.info.get("icc_profile"):
        return 1
    exponent = 1 / (gamma * _SRGB_GAMMA)
    return 1 if abs(exponent - 1) < _SAME_GAMMA else float(exponent)


def _of_16_bits(values: npt.NDArray[np.uint16], exponent: float, clear: int | None) -> npt.NDArray[np.uint8]:
    """Scale 16-bit grey `[H, W]` from its real depth to 8 bits; pixels of the transparent level `clear` become white."""
    shift = spare_bits(int(values.max()))
    levels = (np.arange(1 << 16) >> shift).clip(max=255).astype(np.uint8)
    if exponent != 1:
        levels = (255 * np.linspace(0, 0xFFFF / ((256 << shift) - 1), 1 << 16).clip(max=1) ** exponent).round().astype(np.uint8)
    if clear is not None:
        levels[clear] = 255
    return levels[values]


def _on_white(image: Image.Image) -> Image.Image:
    rows = max(1, _STRIP_PIXELS // image.width)
    flat = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), (0, top))
    return flat


def _stretched(values: npt.NDArray[np.int32 | np.uint32 | np.float32]) -> npt.NDArray[np.uint8]:
    """Scale grey `[H, W]` to 0–255, some rows at a time: all rows of 50 megapixels in double precision would take a gigabyte."""
    rows = max(1, _STRIP_PIXELS // values.shape[1])
    starts = range(0, len(values), rows)

    def finite(start: int) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return np.nan_to_num(values[start : start + rows].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)

    extremes = [(block.min(), block.max()) for block in map(finite, starts)]
    low, high = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    for top in (1.0, *((1 << depth) - 1.0 for depth in DEPTHS)):
        if low >= 0 and high <= top:
            low, high = 0.0, top
            break
    stretched = np.empty(values.shape, np.uint8)
    for start in starts:
        stretched[start : start + rows] = ((finite(start) - low) * (255 / ((high - low) or 1))).round()
    return stretched

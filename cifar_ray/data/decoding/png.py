"""PNG without the chunks that do not change its pixels: a long comment or a damaged one is no reason to refuse a picture."""

from __future__ import annotations

import zlib

from cifar_ray.data.decoding.colours import MAX_PROFILE_BYTES

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_HEADER, _PIXELS, _END = b"IHDR", b"IDAT", b"IEND"
_MAX_TEXT_BYTES = 1 << 20
_PILLOW_PROFILE_BYTES = 1 << 20  # Pillow refuses a picture with a longer profile
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Texts that may say how to rotate the picture: as XMP, and as EXIF in the form of ImageMagick
_ROTATING_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_PALETTE = 3  # a colour type
_TRANSPARENCY_BYTES = {0: 2, 2: 6}  # least size by colour type: grey and RGB
_MAX_PALETTE = 256


def essential(png: bytes) -> tuple[bytes, bytes | None]:
    """Leave out the chunks that do not change the upright pixels, and optional ones that are damaged, as browsers do (libpng).

    Of an animation, the first picture stays, also if a later one is cut. What follows the end, or a place where no chunk can be, stays
    as it is.

    Returns:
        The PNG, and its ICC profile if that is too long for Pillow and was left out.
    """
    kept, start, position = [], 0, len(SIGNATURE)  # runs of kept bytes; the present one begins at `start`
    colour_type, has_pixels, long_profile = 0, False, None
    keywords: set[bytes] = set()
    while position + 8 <= len(png):
        name = png[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(png[position : position + 4])
        if end > len(png) and has_pixels and _is_droppable(name):
            kept.append(memoryview(png)[start:position])
            start = len(png)
        if end > len(png) or not name.isalpha():
            break
        content = b"" if name[:1].isupper() else png[position + 8 : end - 4]
        if name == _HEADER:
            colour_type = png[position + 17]
        has_pixels |= name == _PIXELS
        # Pillow limits the size of all texts together, so only the first of each keyword stays.
        keyword = content.partition(b"\0")[0] if name in _TEXTS else b""
        matters = name[:1].isupper() or (keyword not in keywords and _matters(name, content, png[end - 4 : end], colour_type))
        if matters and keyword:
            keywords.add(keyword)
        if matters and name == b"iCCP" and (profile := _long_profile(content)) is not None:
            matters, long_profile = False, profile
        if not matters:
            kept.append(memoryview(png)[start:position])
            start = end
        position = end
        if name == _END:
            break
    return b"".join([*kept, memoryview(png)[start:]]) if kept else png, long_profile


def _is_droppable(name: bytes) -> bool:
    """Whether a chunk that is cut can be left out: it belongs to a later picture of an animation, or does not affect the rotation."""
    return name.isalpha() and name[:1].islower() and name not in (*_TEXTS, b"eXIf")


def _matters(name: bytes, content: bytes, checksum: bytes, colour_type: int) -> bool:
    """Whether an optional chunk changes the pixels and is sound."""
    if name in _TEXTS:
        sound = _is_short_rotating_text(name, content)
    elif name == b"iCCP":
        sound = content.partition(b"\0")[2][:1] == b"\0"
    elif name == b"tRNS":
        sound = len(content) >= _TRANSPARENCY_BYTES.get(colour_type, 1) and (colour_type != _PALETTE or len(content) <= _MAX_PALETTE)
    else:
        sound = name == b"eXIf" or len(content) == {b"gAMA": 4, b"sRGB": 1}.get(name)
    return sound and zlib.crc32(name + content) == int.from_bytes(checksum)


def _long_profile(content: bytes) -> bytes | None:
    """The ICC profile of a chunk if it is too long for Pillow; empty if it is longer than the maximum, or damaged after the first MiB."""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(content.partition(b"\0")[2][1:], _PILLOW_PROFILE_BYTES)
    except zlib.error:  # Pillow ignores it
        return None
    if not inflate.unconsumed_tail:
        return None
    try:
        profile += inflate.decompress(inflate.unconsumed_tail, MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if len(profile) <= MAX_PROFILE_BYTES else b""


def _is_short_rotating_text(name: bytes, content: bytes) -> bool:
    keyword, _, text = content.partition(b"\0")
    if keyword not in _ROTATING_TEXTS or len(content) > _MAX_TEXT_BYTES:
        return False
    if name == b"tEXt" or (name == b"iTXt" and text[:1] == b"\0"):
        return True
    packed = text[1:] if name == b"zTXt" else text[2:].split(b"\0", 2)[-1]
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(packed, _MAX_TEXT_BYTES)
    except zlib.error:
        return False
    return not inflate.unconsumed_tail

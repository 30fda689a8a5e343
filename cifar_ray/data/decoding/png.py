"""Remove PNG chunks that do not affect the pixels: a long or damaged comment is no reason to refuse a picture."""

from __future__ import annotations

import zlib

from cifar_ray.data.decoding.colours import MAX_PROFILE_BYTES

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_HEADER, _PIXELS, _END = b"IHDR", b"IDAT", b"IEND"
_MAX_TEXT_BYTES = 1 << 20
_PILLOW_PROFILE_BYTES = 1 << 20  # Pillow refuses a picture with a longer profile
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Text chunks that may hold the rotation of the picture: XMP, and EXIF as ImageMagick writes it
_ROTATING_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_PALETTE = 3  # a colour type
_TRANSPARENCY_BYTES = {0: 2, 2: 6}  # minimum size by colour type: grey and RGB
_MAX_PALETTE = 256


def strip_chunks(png: bytes) -> tuple[bytes, bytes | None]:
    """Remove the chunks that do not affect the upright pixels, and damaged optional chunks, as browsers do (libpng).

    The first picture of an animation stays, even if a later one is cut off. Bytes after the end chunk, or after a place where no valid
    chunk starts, stay unchanged.

    Returns:
        The PNG; and its ICC profile, if it was removed because it is too long for Pillow.
    """
    kept, start, position = [], 0, len(SIGNATURE)  # finished runs of kept bytes; the current run begins at `start`
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
    """Whether a chunk that is cut off after the pixels can be removed: it is optional and cannot hold the rotation."""
    return name.isalpha() and name[:1].islower() and name not in (*_TEXTS, b"eXIf")


def _matters(name: bytes, content: bytes, checksum: bytes, colour_type: int) -> bool:
    """Whether an optional chunk affects the upright pixels and is intact."""
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
    """The ICC profile of a chunk if it is too long for Pillow, else `None`; empty if it exceeds the maximum or is damaged after 1 MiB."""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(content.partition(b"\0")[2][1:], _PILLOW_PROFILE_BYTES)
    except zlib.error:  # Pillow ignores a damaged profile
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

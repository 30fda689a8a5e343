"""PNG without the chunks that do not change its pixels: a long comment or a damaged one is no reason to refuse a picture."""

from __future__ import annotations

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_HEADER, _END = b"IHDR", b"IEND"
_MAX_TEXT_BYTES = 1 << 20
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Texts that may say how to rotate the picture: as XMP, and as EXIF in the form of ImageMagick
_ROTATING_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_TRANSPARENCY_BYTES = {0: 2, 2: 6}  # least size by colour type: grey and RGB


def essential(png: bytes) -> bytes:
    """Leave out the chunks that do not change the upright pixels, and optional ones that are damaged, as browsers do (libpng).

    Of an animation, the first picture stays. What follows the end, or a place where no chunk can be, stays as it is.
    """
    kept, start, position = [], 0, len(SIGNATURE)  # runs of kept bytes; the present one begins at `start`
    colour_type = 0
    while position + 12 <= len(png):
        name = png[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(png[position : position + 4])
        if end > len(png) or not name.isalpha():
            break
        if name == _HEADER:
            colour_type = png[position + 17]
        if not (name[:1].isupper() or _matters(name, png[position + 8 : end - 4], png[end - 4 : end], colour_type)):
            kept.append(memoryview(png)[start:position])
            start = end
        position = end
        if name == _END:
            break
    return b"".join([*kept, memoryview(png)[start:]]) if kept else png


def _matters(name: bytes, content: bytes, checksum: bytes, colour_type: int) -> bool:
    """Whether an optional chunk changes the pixels and is sound."""
    if name in _TEXTS:
        sound = _is_short_rotating_text(name, content)
    elif name == b"iCCP":
        sound = content.partition(b"\0")[2][:1] == b"\0"
    elif name == b"tRNS":
        sound = len(content) >= _TRANSPARENCY_BYTES.get(colour_type, 1)
    else:
        sound = name == b"eXIf" or len(content) == {b"gAMA": 4, b"sRGB": 1}.get(name)
    return sound and zlib.crc32(name + content) == int.from_bytes(checksum)


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

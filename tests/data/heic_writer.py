"""A HEIC file (ISO 23008-12) around one intra-coded HEVC picture, so that tests need no encoder."""

from __future__ import annotations

import base64
import struct

# 64×64 px: red left, blue right, half as bright below
RED_AND_BLUE = base64.b64decode(
    "AAAAAUABDAH//wQIAAADAJ+oAAADAAAeugJAAAAAAUIBAQQIAAADAJ+oAAADAAAeoCCBBZbqSTK5oCAAAAMAIAAAAwAhAAAAAUQBwXKwIkAAAAEoAa8E+CoN"
    "nN/vSl//44/v/zA4wH5vh9RNAm//oX0zoqGmE4LD8hQk4iMev4JFjUI8v2wt19cdLDdLmF38XWKhpf6HG3abHL1D4XHkbA5sfrVAmwR2PK/8U9t1ITxUEHTV"
    "E/kA3vQpp/ZV4Czw4Oj4G6O0"
)
COLOURS = ((220, 40, 30), (30, 60, 200))


def _box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", len(body) + 8) + kind + body


def _full_box(kind: bytes, *content: bytes, version: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24), *content)


def _kind(unit: bytes) -> int:
    return (unit[0] >> 1) & 63


def heic(width: int = 64, height: int = 64, brand: bytes = b"heic", turns: int = 0, stream: bytes = RED_AND_BLUE) -> bytes:
    """A HEIC file.

    Args:
        width: width in the header, px; the stream may have another one.
        height: height in the header, px.
        brand: major brand.
        turns: quarter turns counter-clockwise in the header (`irot`).
        stream: an HEVC picture with its parameter sets, as in annex B of H.265.
    """
    units = [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1")[1:]]
    sets = [unit for unit in units if _kind(unit) in (32, 33, 34)]
    data = b"".join(struct.pack(">I", len(unit)) + unit for unit in units if _kind(unit) not in (32, 33, 34))
    profile = next(unit for unit in sets if _kind(unit) == 33).replace(b"\0\0\3", b"\0\0")[3:15]
    arrays = b"".join(bytes([0x80 | _kind(unit)]) + struct.pack(">HH", 1, len(unit)) + unit for unit in sets)
    config = _box(b"hvcC", b"\1" + profile + b"\xf0\0\xfc\xfd\xf8\xf8\0\0\x0f" + bytes([len(sets)]) + arrays)
    properties = [config, _full_box(b"ispe", struct.pack(">II", width, height)), *([_box(b"irot", bytes([turns]))] if turns else [])]
    associations = struct.pack(">IHB", 1, 1, len(properties)) + bytes(
        number | (number != 2) << 7 for number in range(1, len(properties) + 1)
    )

    def meta(offset: int) -> bytes:
        return _full_box(
            b"meta",
            _full_box(b"hdlr", bytes(4) + b"pict" + bytes(13)),
            _full_box(b"pitm", struct.pack(">H", 1)),
            _full_box(b"iloc", b"\x44\0" + struct.pack(">HHHHII", 1, 1, 0, 1, offset, len(data))),
            _full_box(b"iinf", struct.pack(">H", 1), _full_box(b"infe", struct.pack(">HH", 1, 0) + b"hvc1\0", version=2)),
            _box(b"iprp", _box(b"ipco", *properties), _full_box(b"ipma", associations)),
        )

    start = _box(b"ftyp", brand + bytes(4) + b"mif1heic")
    return start + meta(len(start) + len(meta(0)) + 8) + _box(b"mdat", data)

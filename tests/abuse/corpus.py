"""Pictures that are sound but odd, and pictures made to harm."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from cifar_ray.data.decoding.formats import FORMATS


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8))


@cache
def sound() -> dict[str, bytes]:
    """Pictures that a server must take, by what is odd about them."""
    image = smooth()
    frames = [image.rotate(90 * turn) for turn in range(4)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 5000
    grey = np.asarray(image.convert("L"))
    pictures = {f"plain {kind}": encode(image, kind) for kind in FORMATS}
    pictures |= {f"animated {kind}": encode(image, kind, save_all=True, append_images=frames) for kind in ("GIF", "WEBP", "PNG", "TIFF")}
    pictures |= {f"EXIF {kind}": encode(image, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
    pictures |= {f"ICC {kind}": encode(image, kind, icc_profile=b"\xff" * 70_000) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
    pictures |= {f"1 x N {kind}": encode(smooth(1, 5000), kind) for kind in FORMATS}
    pictures |= {f"N x 1 {kind}": encode(smooth(5000, 1), kind) for kind in FORMATS}
    pictures |= {f"1 px {kind}": encode(smooth(1, 1), kind) for kind in FORMATS}
    pictures |= {f"{mode} TIFF": encode(image.convert(mode), "TIFF") for mode in ("1", "CMYK", "YCbCr", "LAB", "RGBA", "P")}
    pictures |= {f"{mode} PNG": encode(image.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")}
    pictures |= {
        "CMYK JPEG": encode(image.convert("CMYK"), "JPEG"),
        "progressive JPEG": encode(image, "JPEG", progressive=True),
        "MPO": encode(image, "MPO", save_all=True, append_images=frames),
        "PNG with 20 MB of text, which nobody reads": png(1, 1, more=(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))),
        "16 bit PNG": encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "16 bit TIFF": encode(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"),
        "32 bit TIFF": encode(Image.fromarray(grey.astype(np.int32) * 9999), "TIFF"),
        "float TIFF": encode(Image.fromarray(grey.astype(np.float32) * 1e30), "TIFF"),
        "NaN TIFF": encode(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"),
        "polyglot GIF and HTML": encode(image, "GIF") + b"<script>alert(1)</script>",
        "polyglot JPEG and ZIP": encode(image, "JPEG") + b"PK\x03\x04" + bytes(60) + b"PK\x05\x06" + bytes(18),
        "polyglot PNG and PDF": encode(image, "PNG") + b"%PDF-1.7\n%%EOF",
        "polyglot JPEG and PHP": encode(image, "JPEG", comment=b"<?php system($_GET[0]); ?>"),
    }
    return pictures


NOT_PICTURES = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"not a picture",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "XML entities": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "ZIP": b"PK\x03\x04" + bytes(200),
    "PDF": b"%PDF-1.7\n" + bytes(200),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    "ELF": b"\x7fELF" + bytes(200),
    "gzip": b"\x1f\x8b\x08" + bytes(200),
    "PPM": b"P6 2 2 255 " + bytes(12),
    "ICO": encode(Image.new("RGB", (16, 16)), "ICO"),
    "TGA": encode(Image.new("RGB", (16, 16)), "TGA"),
    "zeros": bytes(100_000),
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
}


def png(width: int, height: int, data: bytes = b"", more: tuple[bytes, bytes] = (b"tEXt", b"a\0b")) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(*more)
        + chunk(b"IDAT", data or zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@cache
def too_large() -> dict[str, bytes]:
    """Few bytes whose headers promise more than 50 megapixels: refused before anything is decoded."""
    jpeg = bytearray(encode(smooth(), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65_000, 65_000)
    bmp = bytearray(encode(smooth(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    gif = bytearray(encode(smooth(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    frame = bytearray(encode(smooth(), "GIF"))  # the screen is small, its first frame is not
    place = frame.index(b"\x2c", 13 + 3 * 2 ** ((frame[10] & 7) + 1)) + 5
    frame[place : place + 4] = struct.pack("<HH", 65_535, 65_535)
    webp = bytearray(encode(smooth(), "WEBP", lossless=True))
    place = webp.index(b"VP8L") + 9
    webp[place : place + 4] = struct.pack("<I", 16_382 | 16_382 << 14)
    line = zlib.compress(bytes(1 << 20))
    tiff = encode(Image.new("1", (8001, 8001)), "TIFF", compression="group4")
    avif = encode(smooth(), "AVIF").replace(struct.pack(">II", 40, 30), struct.pack(">II", 8000, 8000)) if "AVIF" in FORMATS else b""
    return {
        **({"AVIF": avif} if avif else {}),
        "JPEG": bytes(jpeg),
        "PNG": png(60_000, 60_000, line),
        "PNG just above": encode(Image.new("1", (7072, 7072)), "PNG"),
        "WEBP": bytes(webp),
        "BMP": bytes(bmp),
        "GIF": bytes(gif),
        "GIF frame": bytes(frame),
        "TIFF": tiff,
    }


@cache
def many_scans() -> bytes:
    """A progressive JPEG of 16 megapixels that goes over all of them 3,000 times more."""
    jpeg = encode(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * 3000 + b"\xff\xd9"


@cache
def heavy() -> dict[str, bytes]:
    """Pictures just under the limit, in few bytes: as much work as a picture may be."""
    side = 7071
    return {
        "PNG": encode(Image.new("RGB", (side, side), "red"), "PNG", compress_level=1),
        "PNG RGBA": encode(Image.new("RGBA", (side, side), (255, 0, 0, 9)), "PNG", compress_level=1),
        "TIFF float": encode(Image.new("F", (side, side), 3.5), "TIFF", compression="tiff_lzw"),
        "GIF": encode(Image.new("L", (side, side), 9), "GIF"),
        "JPEG": encode(Image.new("L", (side, side), 9), "JPEG"),
        "WEBP": encode(Image.new("RGB", (side, side), "red"), "WEBP", lossless=True, method=0, quality=0),
        "BMP": encode(Image.new("1", (side, side)), "BMP"),
    }

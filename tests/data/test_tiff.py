"""TIFF as scanners, cameras and instruments write it: the same pixels from a file and from bytes, and the right ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from test_odd_pictures import encode, noise, pixels

from cifar_ray.data.decode import decode_square

ORIENTATION, PHOTOMETRIC = 274, 262
# From the stored to the upright picture, by orientation
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


def tiff_16(values: npt.NDArray[Any], photometric: int, compression: str = "raw") -> bytes:
    """A TIFF of grey in 16 bits; Pillow writes the tag for WhiteIsZero, and the values as they are."""
    return encode(Image.fromarray(values.astype(np.uint16)), "TIFF", compression=compression, tiffinfo={PHOTOMETRIC: photometric})


def grey_tiff(samples: npt.NDArray[Any], photometric: int, big_endian: bool) -> bytes:
    """An uncompressed TIFF of one row of unsigned grey, written by hand: Pillow does not write all of them."""
    order = ">" if big_endian else "<"
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    tags = {256: samples.size, 257: 1, 258: samples.itemsize * 8, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + data


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_file_and_its_bytes_have_the_same_upright_pixels(tmp_path: Path, mode: str, compression: str, orientation: int) -> None:
    grey = np.asarray(noise().convert("L"), np.uint16)
    image = Image.fromarray(grey * 257) if mode == "I;16" else noise().convert(mode)
    path = tmp_path / "picture.tif"
    image.save(path, compression=compression)
    stored = pixels(path)
    image.save(path, compression=compression, tiffinfo={ORIENTATION: orientation})
    assert np.array_equal(pixels(path), UPRIGHT[orientation](stored))
    assert np.array_equal(pixels(path.read_bytes()), pixels(path))
    assert np.array_equal(decode_square(path.read_bytes(), 16, "pad"), decode_square(path, 16, "pad"))


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(("bits", "highest"), [(8, 255), (16, 4095), (16, 65535)])
def test_white_may_be_zero(bits: int, highest: int, big_endian: bool) -> None:
    samples = np.array([0, highest // 2, highest], f"u{bits // 8}")
    assert pixels(grey_tiff(samples, 0, big_endian))[0, :, 0].tolist() == [255, 128, 0]
    assert pixels(grey_tiff(samples, 1, big_endian))[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_white_may_be_zero_in_a_compressed_tiff(compression: str) -> None:
    assert pixels(tiff_16(np.array([[0, 0x8000, 0xFFFF]]), 0, compression))[0, :, 0].tolist() == [255, 127, 0]


def test_grey_of_32_bits_is_unsigned() -> None:
    samples = np.array([0, 1 << 31, (1 << 32) - 1], np.uint32)
    assert pixels(grey_tiff(samples, 1, big_endian=False))[0, :, 0].tolist() == [0, 128, 255]

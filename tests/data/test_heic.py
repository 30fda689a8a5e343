from __future__ import annotations

import contextlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_ray.data.decode import decode_image, decode_square
from cifar_ray.errors import ImageError, ImageTooLargeError
from tests.data.heic_writer import COLOURS, heic


def test_without_its_package_heic_is_refused_in_one_line_that_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    path = tmp_path / "phone.heic"
    path.write_bytes(heic())
    with pytest.raises(ImageError, match=r"phone\.heic: HEIC needs: pip install 'cifar-ray\[heic\]'$"):
        decode_image(path)


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_decoded_whatever_its_brand_and_suffix(tmp_path: Path, brand: bytes) -> None:
    pytest.importorskip("pi_heif")
    path = tmp_path / "phone.jpg"
    path.write_bytes(heic(brand=brand))
    for source in (path, path.read_bytes()):
        pixels = np.asarray(decode_image(source)).astype(int)
        assert pixels.shape == (64, 64, 3)
        for x, colour in zip((16, 48), COLOURS, strict=True):
            assert np.abs(pixels[16, x] - colour).max() < 20  # HEVC halves the resolution of colours and rounds
            assert np.abs(pixels[48, x] - np.array(colour) // 2).max() < 20


def test_the_rotation_of_heic_is_applied_once() -> None:
    pytest.importorskip("pi_heif")
    pixels = decode_square(heic(turns=1), 64, "pad").astype(int)
    red, blue = pixels[48, 16], pixels[16, 16]  # the left side is now below
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100


def test_too_many_pixels_are_refused_from_the_header() -> None:
    pytest.importorskip("pi_heif")
    with pytest.raises(ImageTooLargeError, match="maximum is 50,000,000 pixels"):
        decode_image(heic(8000, 8000))
    with pytest.raises(ImageTooLargeError, match="maximum is 4,095 pixels"):
        decode_square(heic(), 32, "pad", max_pixels=4095)


def test_damaged_heic_is_an_image_error() -> None:
    pytest.importorskip("pi_heif")
    generator = np.random.default_rng(0)
    whole = heic()
    for _ in range(100):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = generator.integers(256)
        with contextlib.suppress(ImageError):
            assert decode_image(bytes(damaged)).mode == "RGB"
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            decode_image(whole[: int(share * len(whole))])


def test_other_files_of_the_same_container_are_not_taken_for_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    video = struct.pack(">I", 24) + b"ftypmp42" + bytes(4) + b"mp42isom" + bytes(100)
    with pytest.raises(ImageError, match=r"unsupported format\. Supported: .*HEIC"):
        decode_image(video)

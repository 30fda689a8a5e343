from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cifar_ray.config import ResizePolicy
from cifar_ray.data.decode import decode_image, fit
from cifar_ray.data.decoding.formats import FORMATS
from cifar_ray.errors import ImageError, ImageTooLargeError
from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES, decode_base64, preprocess
from tests.data.heic_writer import heic


def encoded(image: Image.Image, fmt: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, fmt)
    return buffer.getvalue()


@pytest.fixture
def photo() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG")


@pytest.mark.parametrize("policy", ["pad", "crop", "squash"])
def test_serving_sees_the_same_pixels_as_training_bit_for_bit(photo: bytes, policy: ResizePolicy) -> None:
    served = preprocess(photo, 32, policy)
    assert served.shape == (32, 32, 3)
    assert served.dtype == np.uint8
    np.testing.assert_array_equal(served, fit(decode_image(photo), 32, policy))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_served(kind: str) -> None:
    served = preprocess(encoded(Image.new("RGB", (40, 20), (250, 128, 5)), kind), 16, "squash")
    assert np.abs(served.astype(int) - (250, 128, 5)).max() <= 8


def test_heic_is_served() -> None:
    pytest.importorskip("pi_heif")
    assert preprocess(heic(), 16, "pad").shape == (16, 16, 3)


def test_a_picture_over_the_byte_limit_is_refused() -> None:
    with pytest.raises(ImageTooLargeError, match="10,000,001 bytes"):
        preprocess(bytes(MAX_IMAGE_BYTES + 1), 32, "pad")


def test_a_picture_over_50_megapixels_is_refused() -> None:
    with pytest.raises(ImageTooLargeError, match="pixels"):
        preprocess(encoded(Image.new("1", (8000, 6251))), 32, "pad")


@pytest.mark.parametrize("data", [b"", b"not a picture"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="JPEG, PNG"):
        preprocess(data, 32, "pad")


@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,", "DATA:image/png;charset=x;BASE64,"])
def test_base64_and_data_uris_give_the_bytes_back(photo: bytes, prefix: str) -> None:
    assert decode_base64(prefix + base64.b64encode(photo).decode()) == photo


@pytest.mark.parametrize("broken_by", ["\n", "\r\n", "\r\n\t", " "])
def test_base64_in_lines_is_taken(photo: bytes, broken_by: str) -> None:
    """GNU base64, MIME and Android's default break the text into lines, and end with one."""
    text = base64.b64encode(photo).decode()
    lines = broken_by.join(text[start : start + 76] for start in range(0, len(text), 76)) + broken_by
    assert decode_base64(lines) == decode_base64(f"data:image/jpeg;base64,{lines}") == photo


@pytest.mark.parametrize("text", ["###", "QUJ", "QUJ-", "ÄÖÜ=", "data:image/png;base64", "data:image/png,QUJD", "data:,x"])
def test_what_is_not_strictly_base64_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="base64"):
        decode_base64(text)

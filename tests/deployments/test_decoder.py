"""Where pictures are decoded, and that each one's fate is its own."""

from __future__ import annotations

import asyncio
import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cifar_ray.data.decoding.formats import FORMATS
from cifar_ray.errors import ImageError, ImageTooLargeError
from cifar_ray.inference import preprocess as preprocessing
from deployments.predicting import decoder
from deployments.predicting.contract import Pixels
from deployments.predicting.decoder import Decoder
from tests.data.heic_writer import heic


def png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def decode(*pictures: bytes) -> list[Pixels | ImageError]:
    return asyncio.run(Decoder().decode(pictures, 16, "pad"))


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads in which a picture was decoded to the end."""
    seen: list[str] = []

    def noting(*arguments: object) -> Pixels:
        pixels = preprocessing.preprocess(*arguments)  # type: ignore[arg-type]
        seen.append(threading.current_thread().name)
        return pixels

    monkeypatch.setattr(decoder, "preprocess", noting)
    return seen


def test_a_thumbnail_is_decoded_where_it_stands(threads: list[str]) -> None:
    [pixels] = decode(png(32, 32))
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (16, 16, 3)
    assert threads == [threading.main_thread().name]


@pytest.mark.parametrize("pictures", [[png(2000, 2000)], [png(32, 32), png(32, 32)]])
def test_few_bytes_with_many_pixels_and_several_pictures_go_to_threads(threads: list[str], pictures: list[bytes]) -> None:
    decode(*pictures)
    assert len(threads) == len(pictures)
    assert all(name.startswith("decode") for name in threads)


def test_avif_and_heic_never_hold_up_the_event_loop(threads: list[str]) -> None:
    """Few bytes with a small size in the header may hold many more pixels."""
    buffer = BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "AVIF" if "AVIF" in FORMATS else "PNG")
    decode(buffer.getvalue() if "AVIF" in FORMATS else heic())
    assert [name.startswith("decode") for name in threads] == [True]


@pytest.mark.parametrize("broken", [b"", b"x" * 20_000, png(32, 32)[:60]])
def test_a_broken_picture_leaves_its_error_in_its_place(broken: bytes) -> None:
    [alone] = decode(broken)
    assert isinstance(alone, ImageError)
    first, second = decode(broken, png(40, 30))
    assert isinstance(first, ImageError)
    assert isinstance(second, np.ndarray)


def test_a_picture_of_too_many_pixels_is_refused_and_not_decoded(threads: list[str]) -> None:
    [error] = decode(png(10_000, 5_001))
    assert isinstance(error, ImageTooLargeError)
    assert threads == []

"""A small sample of `make test-abuse`: the same requests against the HTTP side alone, without Ray."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.data.decode import decode_image
from cifar_ray.data.decoding.formats import FORMATS
from cifar_ray.errors import ImageError, ImageTooLargeError
from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES
from deployments.http.routes import create_app
from deployments.http.uploads import MAX_BATCH_BYTES
from tests.abuse import corpus
from tests.abuse.sender import bombard, endless, send
from tests.abuse.uploads import ANSWERED, FORM, KINDS, Upload, part, uploads
from tests.deployments.conftest import Served, make_picture
from tests.deployments.test_ingress import FakeClassifier, Notes

COUNT = 600


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with Served(create_app(FakeClassifier(), ServeConfig(request_timeout_s=5), Notes())) as served:
        yield int(served.url.rpartition(":")[2])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_mutated_uploads_are_answered_as_they_should_be_and_nothing_stays_in_memory(port: int, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(bombard(port, uploads(0), len(KINDS) * 4, per_second=1e6))
    before = resident_bytes()
    tally = asyncio.run(bombard(port, uploads(1), COUNT, per_second=1e6))
    assert tally.wrong == []
    assert sum(tally.statuses.values()) == COUNT
    assert resident_bytes() - before < 50_000_000
    assert "Traceback" not in caplog.text
    good = Upload("good", make_picture(), expected=ANSWERED)
    assert asyncio.run(send(port, good))[0] == 200


def test_the_same_seed_sends_the_same_requests() -> None:
    first, second = (list(islice(uploads(3), 50)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("path", "content_type", "start", "limit"),
    [
        ("/predict", "image/png", b"", MAX_IMAGE_BYTES),
        ("/predict", FORM, part("image", b""), MAX_IMAGE_BYTES * 4 // 3),
        ("/predict_batch", FORM, part("images", b""), MAX_BATCH_BYTES),
    ],
)
def test_an_endless_body_is_stopped_at_the_limit(port: int, path: str, content_type: str, start: bytes, limit: int) -> None:
    status, sent = asyncio.run(endless(port, path, content_type, start or b"x", most_bytes=2 * limit))
    assert status == 413
    assert sent < limit + 30_000_000  # sockets and the server hold some of it


def test_who_goes_on_after_the_answer_is_cut_off(port: int) -> None:
    block = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sender:
        sender.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 99000000000\r\n\r\n")
        answer = sender.recv(65536)
        answered_at = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - answered_at < 10:
                sender.sendall(block)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer
    assert time.monotonic() - answered_at < 5


@pytest.mark.parametrize("name", list(corpus.too_large()))
def test_too_many_pixels_are_refused_from_the_header_of_any_format(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    assert {kind for kind in FORMATS if any(name.startswith(kind) for name in corpus.too_large())} == set(FORMATS)
    for kind in FORMATS:
        monkeypatch.setattr(Image.OPEN[kind][0], "load", lambda _: pytest.fail("it was decoded"), raising=False)
    with pytest.raises(ImageTooLargeError, match="maximum is 50,000,000 pixels"):
        decode_image(corpus.too_large()[name])


def test_a_jpeg_that_is_made_to_be_slow_is_not_decoded() -> None:
    with pytest.raises(ImageError, match="more than 100 scans"):
        decode_image(corpus.many_scans())
    assert decode_image(corpus.sound()["progressive JPEG"]).mode == "RGB"

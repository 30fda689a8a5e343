"""The page of `store export --format web` in a real browser, from a static file server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_ray.data.decode import decode_square
from cifar_ray.errors import MissingDependencyError
from cifar_ray.inference.exporting.web_folder import export_web
from cifar_ray.inference.predictor import Prediction, Predictor
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Bundle, ModelStore
from cifar_ray.store.trust_file import with_trust
from tests.web.conftest import keep_model

pytestmark = pytest.mark.web

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    storage = tmp_path_factory.mktemp("storage")
    keep_model(storage, "pets", ("cat", "dog & <b>puppy</b>", "eel"), with_gallery=False, resize_policy="crop")
    plain = ModelStore(str(storage)).load("pets")
    rng = np.random.default_rng(0)
    known = Predictor(plain, precision="fp32", engine="torch").predict(rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8))
    return with_trust(plain, Trust(temperature=0.05).with_familiarity(known.logits, known.features))


@pytest.fixture(scope="module")
def site(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    try:
        export_web(bundle, str(folder))
    except MissingDependencyError as missing:
        pytest.skip(str(missing))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def open_site(chromium: Any, site: str) -> Iterator[Callable[[dict[str, int]], Any]]:
    """Opens the page; at the end no request went elsewhere, and the console has no error."""
    errors: list[str] = []
    requested: list[str] = []
    contexts: list[Any] = []

    def open_(viewport: dict[str, int]) -> Any:
        context = chromium.new_context(viewport=viewport)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(site)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [url for url in requested if not url.startswith((site, "blob:", "data:"))] == []
    assert errors == []


def answered(bundle: Bundle, path: Path) -> Prediction:
    manifest = bundle.manifest
    square = decode_square(path, manifest.image_size_px, manifest.resize_policy)
    return Predictor(bundle, precision="fp32", engine="torch").predict(square[None])


@pytest.mark.parametrize("viewport", [DESK, PHONE])
def test_the_page_answers_as_the_server(
    open_site: Callable[[dict[str, int]], Any], bundle: Bundle, tmp_path: Path, viewport: dict[str, int]
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    noise.save(tmp_path / "turned.png", exif=turned)
    noise.convert("RGBA").resize((33, 200)).save(tmp_path / "tall.png")
    Image.new("RGBA", (300, 40), (200, 30, 60, 0)).save(tmp_path / "transparent.webp", lossless=True)
    page = open_site(viewport)
    for path in sorted(tmp_path.iterdir()):
        page.set_input_files("#file", path)
        page.wait_for_selector(f"#status:has-text('{path.name}: ')")
        expected = answered(bundle, path)
        order = np.argsort(-expected.probabilities[0], kind="stable")
        shown = [item.inner_text().split("\n")[:2] for item in page.locator("#classes li").all()]
        assert shown == [[bundle.manifest.class_names[n], f"{100 * expected.probabilities[0, n]:.1f} %"] for n in order]
        assert page.inner_text("#answer") == ("Not sure" if expected.abstains[0] else bundle.manifest.class_names[order[0]])
        assert page.is_visible("#unsure") == expected.abstains[0]
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_what_is_no_picture_is_named_and_the_next_one_is_answered(
    open_site: Callable[[dict[str, int]], Any], tmp_path: Path, pictures: Path
) -> None:
    page = open_site(DESK)
    page.set_input_files("#file", pictures / "letter.png")
    page.wait_for_selector("#status:has-text('letter.png cannot be read')")
    assert page.is_hidden("#card")
    page.set_input_files("#file", pictures / "green.png")
    page.wait_for_selector("#card:not([hidden])")

"""Chromium over the real ingress app and a local model: no Ray, nothing but loopback."""

from __future__ import annotations

import asyncio
import io
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageDraw

from cifar_ray.config import ResizePolicy
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import CifarRayError, UnknownModelError
from cifar_ray.inference.explain import explain
from cifar_ray.models import create_model
from cifar_ray.store import Architecture, LabelRules, Manifest, ModelStore
from cifar_ray.store.gallery import GALLERY_FILE, SplitPredictions, encode_gallery
from deployments.http.routes import create_app
from deployments.predicting import schemas
from deployments.predicting.contract import (
    Classified,
    Classifier,
    Explained,
    ModelInfo,
    Observer,
    Status,
    StoredGallery,
    StoredModel,
    TrialEvent,
)
from deployments.replicas.live_models import LiveModels

CHROMIUM = "/usr/bin/chromium"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
DESCRIPTION = "A part of a plant, <b>not</b> of a fungus."
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class LocalClassifier(Classifier):
    """The models in this process, as a classifier replica holds them."""

    def __init__(self, config: ServeConfig) -> None:
        self.models_ = LiveModels(config, "cpu")
        self.models_.refresh()

    async def status(self, reference: str | None = None) -> Status:
        return self.models_.status if reference is None else await self._asked(lambda: Status(self.models_.load(reference).info))

    async def models(self) -> list[StoredModel]:
        return self.models_.stored()

    async def gallery(self, reference: str | None) -> StoredGallery | Status:
        return await self._asked(lambda: self.models_.gallery(reference))

    async def classify(self, images: npt.NDArray[np.uint8], reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        loaded = self.models_.find(reference) or await self._asked(lambda: self.models_.load(reference))
        if isinstance(loaded, Status):
            return loaded
        if (images.shape[1], resize_policy) != (loaded.info.image_size_px, loaded.info.resize_policy):
            return Status(loaded.info)
        prediction = await asyncio.to_thread(loaded.predictor.predict, images)
        return Classified(loaded.info, prediction.probabilities, prediction.abstains, len(images), 0.002)

    async def explain(
        self, image: npt.NDArray[np.uint8], reference: str | None, expected: ModelInfo, class_id: int | None
    ) -> Explained | Status:
        loaded = self.models_.find(reference) or await self._asked(lambda: self.models_.load(reference))
        if isinstance(loaded, Status):
            return loaded
        return Explained(loaded.info, *await asyncio.to_thread(explain, loaded.predictor, image, class_id))

    async def _asked(self, answer: Callable[[], Any]) -> Any:
        try:
            return await asyncio.to_thread(answer)
        except CifarRayError as error:
            return Status(None, str(error), is_known=not isinstance(error, UnknownModelError))


class NoObserver(Observer):
    """Counts nothing."""

    def answered(self, timings_ms: schemas.Timings) -> None: ...

    def refused(self, reason: str) -> None: ...

    def pending(self, images: int) -> None: ...

    def trial_event(self, name: str, version: int, event: TrialEvent, problem: str = "") -> None: ...


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Runs an app on a free port of this machine."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline_s, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def keep_model(storage: Path, name: str, class_names: tuple[str, ...], *, with_gallery: bool, side_px: int = 32, **more: Any) -> None:
    """A network that knows nothing yet, and mistakes made up of coloured squares."""
    arguments = {"num_classes": len(class_names), "image_size": 32}
    torch.manual_seed(0)
    values = {
        "architecture": Architecture(name="small_cnn", arguments=arguments),
        "class_names": class_names,
        "image_size_px": 32,
        "channel_mean": (0.5, 0.5, 0.5),
        "channel_std": (0.25, 0.25, 0.25),
        "resize_policy": "pad",
        "metrics": {"test_accuracy": 0.8},
        "dataset_name": name,
        "dataset_fingerprint": "d" * 64,
        "created_at": datetime(2025, 1, 2, tzinfo=UTC),
    } | more
    attachments = {}
    if with_gallery:
        rng = np.random.default_rng(1)
        labels = np.arange(60 * len(class_names)) % len(class_names)
        others = (labels + rng.choice([1, 2, len(class_names) - 1], len(labels), p=[0.6, 0.3, 0.1])) % len(class_names)
        judged = SplitPredictions(labels, np.where(rng.random(len(labels)) < 0.2, others, labels), rng.uniform(0.3, 1, len(labels)))
        colours = rng.integers(60, 240, (len(labels), 1, 1, 3), np.uint8)
        images = np.broadcast_to(colours, (len(labels), side_px, side_px, 3)).copy()
        attachments[GALLERY_FILE] = encode_gallery(judged, images, class_names, "#{}".format, "test")
    ModelStore(str(storage)).save(name, Manifest.model_validate(values), create_model("small_cnn", **arguments).state_dict(), attachments)


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with six models: of ten classes, the default; descriptions; no gallery; a hundred classes; photographs; several labels."""
    storage = tmp_path_factory.mktemp("storage")
    keep_model(storage, "cifar10", CLASSES, with_gallery=True)
    about = dict.fromkeys(("bud", "leaf", "root"), DESCRIPTION)
    keep_model(storage, "described", (*about, "constructor"), with_gallery=False, class_descriptions=about)
    keep_model(storage, "bare", ("cat", "dog"), with_gallery=False)
    keep_model(storage, "many", tuple(f"kind {i:03}" for i in range(120)), with_gallery=True)
    keep_model(storage, "photos", ("cat", "dog"), with_gallery=True, side_px=128)
    rules = LabelRules(thresholds=(0.5,) * 3, slopes=(0.001,) * 3, offsets=(1.0, 2.0, -2.0))
    keep_model(
        storage, "scenes", ("beach", "dog", "night"), with_gallery=False, task="multi-label", label_rules=rules, metrics={"test_map": 0.91}
    )
    ModelStore(str(storage)).promote("cifar10", 1)
    config = ServeConfig(storage=str(storage), engine="torch", max_batch_size=8)
    with serving(create_app(LocalClassifier(config), config, NoObserver())) as address:
        yield address


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few files as a user may have them, and some that are no pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("green.png", "green"), ("red.jpg", "firebrick"), ("blue.webp", "steelblue")):
        image = Image.new("RGB", (120, 90), colour)
        ImageDraw.Draw(image).ellipse((30, 15, 90, 75), fill="white")
        image.save(folder / name)
    (folder / "letter.png").write_text("Dear reader, this is no picture.")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "large.bmp").write_bytes(b"BM" + bytes(10_000_000))
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'cifar-ray[web]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page in a fresh profile; at the end no request went elsewhere and the console has no error."""
    contexts: list[Any] = []
    requested: list[str] = []
    errors: list[str] = []

    def open_(query: str = "", **settings: Any) -> Any:
        context = chromium.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: requested.append(request.url))
        # a refused request is told to the console by the browser itself
        page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        return visit(page, address + query)

    yield open_
    for context in contexts:
        context.close()
    assert [url for url in requested if not url.startswith((address, "blob:", "data:"))] == []
    assert errors == []


def visit(page: Any, url: str | None = None) -> Any:
    """Opens a page, or loads it again, and waits until its script has run: the browser's `load` event comes before that."""
    if url is None:
        page.reload()
    else:
        page.goto(url)
    page.evaluate("() => import(document.querySelector('script[type=module]').src)")
    return page


def expect(locator: Any) -> Any:
    """Playwright's assertions, which wait: the page answers to a key or a click only after a moment."""
    playwright = pytest.importorskip("playwright.sync_api")
    playwright.expect.set_options(timeout=15_000)
    return playwright.expect(locator)


def is_error(message: Any) -> bool:
    return message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")


@pytest.fixture
def png() -> bytes:
    """What `/explain` answers: a picture of 224 px."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((224, 224)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()

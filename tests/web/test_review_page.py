"""Labelling captured pictures on the page, in a real browser: keyboard, touch, several people, no connection."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cifar_ray.captures.capture_files import Capture, Captures
from cifar_ray.captures.reviews import Reviews
from cifar_ray.config.api_keys import add_key
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.store import LabelRules, ModelStore
from deployments.http.routes import create_app
from tests.web.conftest import CLASSES, LocalClassifier, NoObserver, expect, is_error, keep_model, serving, visit

pytestmark = pytest.mark.web

PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


class Server:
    """A server with eight captured pictures; the model was least sure of the first one."""

    def __init__(self, folder: Path, chromium: Any) -> None:
        self.storage, self.chromium = str(folder / "storage"), chromium
        self.key = add_key(folder / "keys.txt", "alice", None, "review")
        keep_model(Path(self.storage), "cifar10", CLASSES, with_gallery=False)
        ModelStore(self.storage).promote("cifar10", 1)
        captures = []
        for number in range(8):
            jpeg = io.BytesIO()
            Image.new("RGB", (90, 60), (30 * number, 120, 90)).save(jpeg, "JPEG")
            answer = ("cifar10@1", "frog", 0.3 + number / 20)
            captures.append(Capture(f"r{number}", 0, datetime.now(UTC), *answer, abstains=False, disagrees=False, picture=jpeg.getvalue()))
        Captures(self.storage).write(captures)
        self.config = ServeConfig(storage=self.storage, engine="torch", max_batch_size=8, api_keys=folder / "keys.txt")
        self.errors: list[str] = []
        self.contexts: list[Any] = []

    def open(self, address: str, **settings: Any) -> Any:
        context = self.chromium.new_context(**settings)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: self.errors.append(message.text) if is_error(message) else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        visit(page, address)
        page.locator("#key").fill(self.key)
        page.get_by_role("button", name="Use this key").click()
        page.get_by_text("Classes: ").wait_for()
        page.locator("#review summary").click()
        page.locator(".reviewing img[src]").wait_for()
        return page

    def labels(self) -> dict[str, str]:
        return {key: review.label for key, review in Reviews(self.storage).current().items()}


@pytest.fixture
def server(tmp_path: Path, chromium: Any) -> Iterator[tuple[Server, str]]:
    made = Server(tmp_path, chromium)
    with serving(create_app(LocalClassifier(made.config), made.config, NoObserver())) as address:
        yield made, address
    for context in made.contexts:
        context.close()
    assert made.errors == []


def wait_for(page: Any, server: Server, labels: dict[str, str]) -> None:
    for _ in range(300):
        if server.labels() == labels:
            return
        page.wait_for_timeout(50)
    assert server.labels() == labels


def test_one_key_a_label_with_undo_and_the_unsure_ones_first(server: tuple[Server, str]) -> None:
    made, address = server
    page = made.open(address)
    expect(page.locator(".reviewing figcaption")).to_contain_text(": frog, 30 %. 8 to label")
    for key in ("7", "n", "s", "4"):  # frog, none of these, skip, cat
        page.keyboard.press(key)
    wait_for(page, made, {"r0#0": "frog", "r1#0": "", "r3#0": "cat"})
    expect(page.locator(".reviewing figcaption")).to_contain_text("5 to label")
    page.keyboard.press("u")
    wait_for(page, made, {"r0#0": "frog", "r1#0": ""})
    page.keyboard.press("6")  # dog
    wait_for(page, made, {"r0#0": "frog", "r1#0": "", "r3#0": "dog"})
    assert [review.by for review in Reviews(made.storage).all()] == ["alice"] * 5


def test_several_labels_are_switched_and_saved_with_enter(tmp_path: Path, chromium: Any) -> None:
    made = Server(tmp_path, chromium)
    rules = LabelRules(thresholds=(0.5,) * 3, slopes=(0.001,) * 3, offsets=(1.0, 2.0, -2.0))
    keep_model(tmp_path / "storage", "scenes", ("beach", "frog", "dog, small"), with_gallery=False, task="multi-label", label_rules=rules)
    with serving(create_app(LocalClassifier(made.config), made.config, NoObserver())) as address:
        page = made.open(address)
        page.select_option("#model", "scenes@1")
        pressed = page.locator('.labels [aria-pressed="true"]')
        pressed.get_by_text("frog").wait_for()  # predicted
        for key in "13":
            page.keyboard.press(key)
        expect(pressed).to_have_count(3)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        wait_for(page, made, {"r0#0": "frog, dog, small"})
        page.keyboard.press("n")
        page.locator(".labels").get_by_role("button", name="frog").click()
        page.locator(".labels").get_by_role("button", name="Save").click()
        wait_for(page, made, {"r0#0": "frog, dog, small", "r1#0": "", "r2#0": ""})
        page.keyboard.press("u")
        wait_for(page, made, {"r0#0": "frog, dog, small", "r1#0": ""})
    for context in made.contexts:
        context.close()
    assert made.errors == []


def test_without_a_connection_decisions_wait_and_arrive_later(server: tuple[Server, str]) -> None:
    made, address = server
    page = made.open(address)
    page.wait_for_function(
        "() => performance.getEntriesByType('resource').filter((one) => one.name.includes('captures/picture')).length === 8"
    )
    page.context.set_offline(True)
    for key in "4444":
        page.keyboard.press(key)
    page.get_by_text("4 decisions wait for the connection.").wait_for()
    assert page.locator(".reviewing img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 448
    assert made.labels() == {}
    page.context.set_offline(False)
    visit(page)
    page.locator("#review summary").click()
    wait_for(page, made, {f"r{number}#0": "cat" for number in range(4)})


def test_two_people_do_not_lose_each_others_work(server: tuple[Server, str]) -> None:
    made, address = server
    first, second = made.open(address), made.open(address)
    for key in "12":
        first.keyboard.press(key)
        second.keyboard.press("s")
    for key in "34":
        second.keyboard.press(key)
    wait_for(second, made, {"r0#0": "airplane", "r1#0": "automobile", "r2#0": "bird", "r3#0": "cat"})


def test_a_phone_shows_picture_and_buttons_and_a_touch_labels(server: tuple[Server, str]) -> None:
    made, address = server
    page = made.open(address, **PHONE)
    page.locator(".labels").get_by_text("horse").tap()
    wait_for(page, made, {"r0#0": "horse"})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("settings", [{"color_scheme": "light"}, {"color_scheme": "dark", **PHONE}])
def test_axe_finds_nothing(server: tuple[Server, str], settings: dict[str, Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    made, address = server
    page = made.open(address, **settings, bypass_csp=True, reduced_motion="reduce")
    page.keyboard.press("4")
    page.get_by_text("Undo (u): cat").wait_for()
    assert [one["id"] for one in axe.run(page).response["violations"]] == []


def test_a_server_without_keys_has_no_review(server: tuple[Server, str], tmp_path: Path) -> None:
    made, _ = server
    config = made.config.model_copy(update={"api_keys": None})
    with serving(create_app(LocalClassifier(config), config, NoObserver())) as address:
        page = made.chromium.new_context().new_page()
        visit(page, address)
        page.get_by_text("Classes: ").wait_for()
        expect(page.locator("#review")).to_have_count(0)
        page.context.close()

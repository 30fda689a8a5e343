"""The page of check_labels in a real browser: decide, come back later, download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_ray.data import DatasetSplits, ImageDataset
from cifar_ray.evaluation.label_check.check import CheckedLabels
from cifar_ray.evaluation.label_check.labelled_pictures import LabelledPictures
from cifar_ray.evaluation.label_check.suspects import Suspect
from cifar_ray.reports import label_report
from tests.web.conftest import expect

pytestmark = pytest.mark.web

NAMES = ("cat", "dog, small", "eel")
PHONE = {"viewport": {"width": 390, "height": 800}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a wrong label, a near-duplicate and an odd picture."""
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    files = np.array([b"cat/a.png", b"cat/b.png", b"dog, small/c.png", b'eel/"d".png', b"eel/e.png"])
    splits = DatasetSplits("pets", ImageDataset(images, np.array([0, 0, 1, 2, 2]), NAMES, files), None, None)
    suspects = [Suspect(0, "duplicate", 1, 0.2, 0.7, 2), Suspect(1, "label", 2, 0.03, 0.9), Suspect(3, "unlike", 2, 0.5, 0.5)]
    checked = CheckedLabels(LabelledPictures(splits, 32), suspects, 0.9)
    path = tmp_path_factory.mktemp("page") / label_report.PAGE
    path.write_bytes(label_report.to_files(checked, "cifar-ray check_labels pets --apply decisions.csv")[label_report.PAGE])
    return path


@pytest.fixture
def open_file(chromium: Any, file: Path) -> Any:
    """Opens the page in one profile."""
    context = chromium.new_context()
    errors: list[str] = []

    def open_() -> Any:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield open_
    context.close()
    assert errors == []


def downloaded(page: Any) -> str:
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "decisions.csv"
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_decisions_are_kept_for_the_next_visit_and_downloaded(open_file: Callable[[], Any]) -> None:
    page = open_file()
    expect(page.locator("#download")).to_be_disabled()
    page.get_by_label("change to dog, small").check()
    page.get_by_label("Another class for cat/b.png").fill("dog, small")
    page.get_by_label("leave the picture out").last.check()
    expect(page.locator("#count")).to_have_text("3 decided")
    page.close()
    again = open_file()
    expect(again.locator(".card.decided")).to_have_count(3)
    assert downloaded(again) == 'image,decision\ncat/a.png,"dog, small"\ncat/b.png,"dog, small"\n"eel/""d"".png",remove\n'


def test_all_suggestions_can_be_accepted_and_cleared(open_file: Callable[[], Any]) -> None:
    page = open_file()
    page.get_by_label("keep cat").first.check()
    page.click("#accept")
    assert downloaded(page) == "image,decision\ncat/a.png,keep\ncat/b.png,eel\n"
    page.click("#clear")
    expect(page.locator("#download")).to_be_disabled()


def test_a_class_that_does_not_exist_is_no_decision(open_file: Callable[[], Any]) -> None:
    page = open_file()
    page.get_by_label("Another class for cat/b.png").fill("horse")
    expect(page.locator("#count")).to_have_text("0 decided")


@pytest.mark.parametrize("settings", [{}, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(chromium: Any, file: Path, settings: dict[str, Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = chromium.new_context(**settings)
    page = context.new_page()
    page.goto(file.as_uri())
    found = axe.run(page).response["violations"]
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    context.close()
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
    assert wide <= 0

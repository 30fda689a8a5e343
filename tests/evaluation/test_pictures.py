from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from cifar_ray.metrics.accuracy import evaluate_logits
from cifar_ray.metrics.intervals import prediction_bias
from cifar_ray.reports import canvas, plots
from cifar_ray.reports.contact_sheet import Cell, sheet
from cifar_ray.reports.renderer import Code, Picture, Section, Table, render

STRANGE = ("猫", "$5$ and \\frac", "x" * 200)


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(png)) as image:
        return image.size


@pytest.mark.parametrize("names", [STRANGE, tuple(map(str, range(100)))], ids=["strange", "hundred"])
def test_any_class_names_can_be_drawn_without_a_warning(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    evaluation = evaluate_logits(rng.normal(size=(60, len(names))).astype(np.float32), rng.integers(0, len(names), 60))
    bias = prediction_bias(evaluation.confusion)
    for png in (
        plots.confusion(evaluation, names),
        plots.per_class({"recall": evaluation.per_class_accuracy()}, names),
        plots.bias(bias, names),
    ):
        assert min(size_of(png)) > 200


def test_a_sheet_shows_every_picture_and_as_much_of_a_name_as_fits() -> None:
    colours = [np.full((8, 8, 3), 40 * number, np.uint8) for number in range(5)]
    page = np.asarray(
        Image.open(BytesIO(sheet([Cell((colour,), ("a/very/long/name" * 9, "猫")) for colour in colours], columns=3, side_px=50)))
    )
    assert page.shape[1] == 3 * 50 + 4 * 8
    assert all((page == 40 * number).all(axis=2).sum() >= 2400 for number in range(5))


def test_a_page_holds_its_pictures_and_runs_nothing_that_a_name_says() -> None:
    table = Table(("class", "images"), [("<script>alert(1)</script>", "1,000"), ("b", "3.5 % and words")])
    names = Table((), [("<script>", "<script>")])
    page = render("<b>", "&", [Section('In "short"', ["<i>", table, names, Code("<script>"), Picture(b"png", '"><script>')])]).decode()
    assert "<script>" not in page
    assert "<i>" not in page
    assert page.count("&lt;script&gt;") == 6
    assert '<td class="number">1,000</td>' in page
    assert "<td>3.5 % and words</td>" in page
    assert 'src="data:image/png;base64,cG5n"' in page


def test_a_column_of_numbers_has_its_title_above_them_and_the_best_row_stands_out() -> None:
    cells = ["1,000", "-3.5", "1e-05", "75.98 % and 73.53 %", "2/6", "90.0 ± 0.3 %", "< 0.0001", "–", ""]
    table = Table(("number", "mixed"), [(cell, "word" if number else "1") for number, cell in enumerate(cells)], best_row=1)
    page = render("", "", [Section("", [table])]).decode()
    assert '<th scope="col" class="number">number</th>' in page
    assert '<th scope="col">mixed</th>' in page
    assert page.count('<td class="number">') == len(cells), "all but the empty one, and the 1 above the words"
    assert page.count("<tr>") == len(cells)
    assert page.index('<tr class="best">') > page.index("1,000")


def test_names_in_any_script_are_drawn_if_this_machine_has_a_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert canvas.font_for("daisy وردة ñ") == canvas.own_font()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "damaged.ttf"), str(canvas.own_font())])
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    canvas._font_for.cache_clear()
    assert canvas.font_for("向日葵") == canvas.own_font(), "no font covers it, and a damaged one stops nothing"
    canvas._font_for.cache_clear()


def test_a_name_from_right_to_left_leaves_what_follows_in_its_place() -> None:
    assert canvas.isolated("daisy") == "daisy"
    assert canvas.isolated("وردة") == "\u200eوردة\u200e"

"""What the page promises, in a real browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import DESCRIPTION, expect, visit

pytestmark = pytest.mark.web

Open = Callable[..., Any]
WORDS = Path(__file__).parents[2] / "deployments" / "web" / "static" / "words"
PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
DROP = """async ([files, target]) => {
  const carried = new DataTransfer();
  for (const [name, data] of files) carried.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
  const element = document.querySelector(target);
  for (const type of ["dragenter", "dragover", "drop"]) {
    element.dispatchEvent(new DragEvent(type, { dataTransfer: carried, bubbles: true, cancelable: true }));
  }
}"""
PASTE = """async ([name, data]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: carried, bubbles: true, cancelable: true }));
}"""


def text_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def answered(page: Any, count: int) -> Any:
    """Waits until so many cards have an answer, good or bad."""
    cards = page.locator(".card")
    page.wait_for_function("count => document.querySelectorAll('.card h3').length === count", arg=count)
    expect(cards).to_have_count(count)
    return cards


def choose(page: Any, *files: Path) -> None:
    page.set_input_files("#choose", [str(file) for file in files])


def test_a_chosen_picture_gets_a_card_with_classes_percentages_time_and_version(open_page: Open, pictures: Path) -> None:
    page = open_page()
    choose(page, pictures / "green.png")
    card = answered(page, 1).first
    expect(card.locator(".name")).to_have_text("green.png")
    best = card.locator("h3").inner_text()
    names = card.locator(".bars .class").all_inner_texts()
    shares = [int(re.sub(r"\D", "", text)) for text in card.locator(".bars .percent").all_inner_texts()]
    assert (len(names), names[0]) == (5, best)
    assert shares == sorted(shares, reverse=True)
    assert re.fullmatch(r"cifar10@1 · \d+ ms in the server, \d+ ms in total", card.locator(".meta").last.inner_text())
    expect(page.locator("#said")).to_contain_text(f"green.png: {best}")
    assert not re.search("null|undefined|NaN", card.inner_text())
    assert card.locator("figure img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 120


def test_a_model_with_several_labels_ticks_those_that_the_picture_has(open_page: Open, pictures: Path) -> None:
    page = open_page()
    page.select_option("#model", "scenes@1")
    expect(page.locator("#known")).to_have_text("Labels: beach, dog, night.")
    expect(page.locator("#model option:checked")).to_contain_text("91.0 % mean average precision")
    choose(page, pictures / "green.png")
    card = answered(page, 1).first
    expect(card.locator("h3")).to_have_text("dog, beach")
    assert [text.startswith("✓") for text in card.locator(".bars .class").all_inner_texts()] == [True, True, False]
    expect(page.locator("#said")).to_have_text("green.png: dog, beach.")


def test_the_description_of_a_class_is_on_the_card_and_on_its_bar_as_text(open_page: Open, pictures: Path) -> None:
    page = open_page()
    page.select_option("#model", "described@1")
    choose(page, pictures / "green.png")
    card = answered(page, 1).first
    assert card.locator("h3").inner_text() != "constructor", "the test needs a class with a description"
    shown = card.locator(".description")
    assert (shown.inner_text(), shown.locator("p").get_attribute("dir")) == (DESCRIPTION, "auto")
    expect(page.locator("b")).to_have_count(0)
    titles = card.locator(".bars .class").evaluate_all("all => all.map(one => [one.textContent, one.title])")
    assert dict(titles) == dict.fromkeys(("bud", "leaf", "root"), DESCRIPTION) | {"constructor": ""}
    page.select_option("#model", "bare@1")
    page.get_by_role("button", name="Ask again").click()
    card.locator(".meta", has_text="bare@1").wait_for()
    expect(shown).to_have_count(0)


def test_a_long_description_shows_its_first_lines_until_it_is_opened(open_page: Open, pictures: Path) -> None:
    page = open_page(viewport={"width": 390, "height": 844})
    models = page.request.get(f"{page.url}models").json()
    for entry in models["models"]:
        entry["class_descriptions"] = dict.fromkeys(entry["classes"], "这是一种具有分叶核的大型白细胞。" * 60)
    page.route("**/models", lambda route: route.fulfill(json=models))
    visit(page)
    choose(page, pictures / "green.png")
    summary = answered(page, 1).first.locator(".description summary")
    closed = summary.bounding_box()["height"]
    assert closed < 120
    summary.focus()
    page.keyboard.press("Enter")
    page.locator(".description[open]").wait_for()
    assert summary.bounding_box()["height"] > 3 * closed
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_pictures_can_be_dropped_anywhere_and_pasted(open_page: Open, pictures: Path) -> None:
    page = open_page()
    files = [(name, text_of(pictures / name)) for name in ("green.png", "red.jpg")]
    page.evaluate(DROP, [files, "footer"])
    answered(page, 2)
    page.evaluate(PASTE, ["pasted.png", text_of(pictures / "green.png")])
    answered(page, 3)
    assert page.locator(".card .name").all_inner_texts() == ["pasted.png", "green.png", "red.jpg"]


def test_a_picture_that_is_chosen_before_the_script_has_arrived_is_answered(open_page: Open, pictures: Path) -> None:
    page = open_page()
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.route("**/page.js", hold)
    page.goto(page.url, wait_until="commit")
    page.locator("#choose").wait_for(state="attached")
    choose(page, pictures / "green.png")
    while not held:
        page.wait_for_timeout(10)
    held[0].continue_()
    answered(page, 1)


def test_many_pictures_are_answered_a_few_at_a_time(open_page: Open, pictures: Path) -> None:
    page = open_page()
    under_way = most = 0

    def hold(route: Any) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        route.continue_()

    def finished(request: Any) -> None:
        nonlocal under_way
        under_way -= "predict" in request.url

    page.route("**/predict?*", hold)
    page.on("requestfinished", finished)
    choose(page, *[pictures / "red.jpg"] * 12)
    answered(page, 12)
    assert 1 < most <= 4
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#results")).to_be_hidden()


def test_a_sample_is_a_drawing_of_ours_and_is_answered(open_page: Open) -> None:
    page = open_page()
    samples = page.locator("#samples button")
    samples.first.click()
    assert samples.count() >= 4
    card = answered(page, 1)
    expect(card.locator(".name")).to_contain_text("drawing")
    expect(card.locator(".bars li")).to_have_count(5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("letter.png", "This file cannot be read as a picture."),
        ("empty.jpg", "This file cannot be read as a picture."),
        ("large.bmp", "This picture is too large."),
    ],
)
def test_a_bad_file_is_refused_in_words_and_harms_no_other(open_page: Open, pictures: Path, name: str, words: str) -> None:
    page = open_page()
    choose(page, pictures / name, pictures / "green.png")
    cards = answered(page, 2)
    expect(cards.nth(0)).to_contain_text(words)
    expect(cards.nth(1).locator(".bars li")).to_have_count(5)


def test_when_the_server_is_away_the_page_says_so_and_tries_again_when_asked(open_page: Open, pictures: Path) -> None:
    page = open_page()
    page.context.set_offline(True)
    choose(page, pictures / "green.png")
    card = answered(page, 1).first
    expect(card).to_contain_text("The server cannot be reached.")
    page.context.set_offline(False)
    card.get_by_role("button", name="Try green.png again").click()
    card.locator(".bars").wait_for()


def test_an_overloaded_server_is_asked_again_after_the_time_it_says(open_page: Open, pictures: Path) -> None:
    page = open_page()
    refusals = iter([429, 503])

    def refuse(route: Any) -> None:
        status = next(refusals, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "1"}, body="Request dropped due to backpressure")

    page.route("**/predict?*", refuse)
    choose(page, pictures / "green.png")
    page.get_by_text("The server is busy; trying again in 1 s").wait_for()
    answered(page, 1).locator(".bars").wait_for()


def test_a_key_is_asked_for_once_kept_in_the_tab_and_sent(open_page: Open, pictures: Path) -> None:
    page = open_page()

    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer sesame":
            route.continue_()
        else:
            body = json.dumps({"detail": "who are you?"})
            route.fulfill(status=401, body=body, content_type="application/problem+json")

    page.route("**/predict?*", guard)
    choose(page, pictures / "green.png", pictures / "red.jpg")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    dialog.get_by_text("refused this key").wait_for()
    dialog.get_by_label("API key").fill("sesame")
    dialog.get_by_role("button", name="Use this key").click()
    answered(page, 2)
    expect(page.locator(".card .bars")).to_have_count(2)
    visit(page)
    choose(page, pictures / "green.png")
    answered(page, 1)
    page.get_by_role("button", name="Forget the API key").click()
    choose(page, pictures / "green.png", pictures / "red.jpg")
    dialog.get_by_role("button", name="Cancel").click()
    cards = answered(page, 3)
    expect(cards.first).to_contain_text("This server requires an API key.")
    expect(dialog).to_be_hidden()


def test_a_model_that_is_not_sure_says_so_and_still_lists_its_guesses(open_page: Open, pictures: Path) -> None:
    page = open_page()

    def doubt(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | {"abstain": True})

    page.route("**/predict?*", doubt)
    choose(page, pictures / "green.png")
    card = answered(page, 1).first
    expect(card.locator("h3")).to_have_text("Not sure")
    expect(card.locator(".bars li")).to_have_count(5)
    expect(page.locator("#said")).to_contain_text("not sure, perhaps")


def test_why_lays_a_heat_map_over_the_picture_for_the_class_that_is_chosen(open_page: Open, pictures: Path, png: bytes) -> None:
    page = open_page()
    asked: list[str] = []

    def explain(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(body=png, content_type="image/png")

    page.route("**/explain?*", explain)
    choose(page, pictures / "green.png")
    card = answered(page, 1).first
    why = card.get_by_role("button", name="Why?")
    expect(why).to_have_attribute("aria-pressed", "false")
    why.click()
    card.locator(".heat").wait_for()
    expect(why).to_have_attribute("aria-pressed", "true")
    card.get_by_role("combobox").select_option(index=1)
    page.wait_for_function(
        "count => performance.getEntriesByType('resource').filter((one) => one.name.includes('explain')).length >= count", arg=2
    )
    second = card.locator(".bars .class").nth(1).inner_text()
    card.get_by_text(f"evidence for {second}").wait_for()
    assert card.locator(".heat").evaluate("image => image.decode().then(() => image.naturalWidth)") == 224
    assert all("model=cifar10%401" in url for url in asked)
    assert len({re.search(r"class=(\w+)", url)[1] for url in asked}) == 2
    why.click()
    expect(card.locator(".heat")).to_have_count(0)


def test_another_model_answers_when_it_is_chosen(open_page: Open, pictures: Path) -> None:
    page = open_page()
    choose(page, pictures / "green.png")
    answered(page, 1)
    page.get_by_label("Model", exact=True).select_option("bare@1")
    page.get_by_text("Classes: cat, dog.").wait_for()
    page.get_by_role("button", name="Ask again").click()
    page.get_by_text("bare@1 ·").wait_for()
    expect(page.locator(".bars li")).to_have_count(2)


def test_a_cell_of_the_matrix_shows_its_pictures(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("Where the model is wrong").click()
    table = page.get_by_role("table")
    table.wait_for()
    expect(table.get_by_role("columnheader")).to_have_count(10)
    expect(table.get_by_role("rowheader")).to_have_count(10)
    button = table.get_by_role("button", name="dog predicted as frog")
    count = int(button.inner_text())
    button.click()
    expect(page.locator(".cell h3")).to_have_text("dog predicted as frog")
    expect(page.locator(".cell img")).to_have_count(min(12, count))
    expect(button).to_have_attribute("aria-current", "true")


def test_photographs_are_shown_smooth_and_larger(open_page: Open) -> None:
    page = open_page()
    page.get_by_text("Where the model is wrong").click()
    widths, renderings = {}, {}
    for name in ("cifar10", "photos"):
        page.get_by_label("Model", exact=True).select_option(f"{name}@1")
        picture = page.locator(".cell img").first
        page.locator("#mistakes-body strong").get_by_text(f"{name}@1").wait_for()
        picture.wait_for()
        page.wait_for_function("() => document.querySelector('.cell img').complete")
        widths[name] = picture.bounding_box()["width"]
        renderings[name] = picture.evaluate("image => getComputedStyle(image).imageRendering")
    assert renderings == {"cifar10": "pixelated", "photos": "auto"}
    assert widths["photos"] > widths["cifar10"]


def test_a_model_without_a_gallery_says_how_to_get_one(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Model", exact=True).select_option("bare@1")
    page.get_by_text("Where the model is wrong").click()
    page.get_by_text("cifar-ray evaluate bare@1 --attach").wait_for()


def test_of_many_classes_the_most_confused_are_shown_or_those_around_one(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Model", exact=True).select_option("many@1")
    page.get_by_text("Where the model is wrong").click()
    headers = page.get_by_role("table").get_by_role("rowheader")
    headers.first.wait_for()
    assert 10 <= headers.count() <= 20
    page.get_by_label("Classes").select_option("kind 077")
    expect(headers.get_by_text("kind 077", exact=True)).to_have_count(1)
    expect(page.locator(".pairs li")).to_have_count(8)


def test_the_keyboard_alone_is_enough(open_page: Open) -> None:
    page = open_page()

    def tab_to(selector: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab does not lead to {selector}")

    page.locator("#samples button").first.wait_for()
    tab_to("#choose")
    tab_to("#samples button")
    page.keyboard.press("Enter")
    answered(page, 1)
    tab_to(".why button")
    tab_to(".remove")
    page.keyboard.press("Space")
    expect(page.locator(".card")).to_have_count(0)
    assert page.evaluate("document.activeElement.id") == "choose"
    tab_to("summary")
    page.keyboard.press("Enter")
    page.get_by_role("table").wait_for()
    tab_to(".matrix button")
    seen = set()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "Home", "End"):
        page.keyboard.press(key)
        seen.add(page.evaluate("document.activeElement.dataset.cell"))
    assert len(seen) > 2
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    expect(page.locator(".matrix button[tabindex='0']")).to_have_count(1)


@pytest.mark.parametrize("settings", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_axe_finds_nothing_serious(open_page: Open, pictures: Path, settings: dict[str, Any]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(**settings, bypass_csp=True, reduced_motion="reduce")  # axe is injected as an inline script
    choose(page, pictures / "green.png", pictures / "letter.png")
    answered(page, 2)
    page.get_by_text("Where the model is wrong").click()
    page.locator(".cell img").first.wait_for()
    found = axe.run(page).response["violations"]
    assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []


def test_dark_mode_is_dark_and_light_mode_is_light(open_page: Open) -> None:
    def brightness(scheme: str) -> float:
        page = open_page(color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    assert brightness("dark") < 60
    assert brightness("light") > 200


def test_on_the_narrowest_phone_nothing_is_wider_than_the_screen(open_page: Open, pictures: Path) -> None:
    page = open_page(**PHONE)
    expect(page.get_by_text("Take a photo")).to_be_visible()
    page.set_input_files("#camera", str(pictures / "red.jpg"))
    answered(page, 1)
    page.get_by_text("Where the model is wrong").click()
    page.locator(".cell img").first.wait_for()
    wide = page.evaluate("""() => [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.matches(".unseen")
        && one.getBoundingClientRect().right > innerWidth + 0.5).map((one) => one.outerHTML.slice(0, 80))""")
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_who_wants_no_motion_gets_none(open_page: Open, pictures: Path) -> None:
    page = open_page(reduced_motion="reduce")
    choose(page, pictures / "green.png")
    answered(page, 1)
    assert page.locator(".fill").first.evaluate("bar => getComputedStyle(bar).transitionDuration") == "0s"


@pytest.mark.parametrize(
    ("locale", "language", "heading"),
    [("de-AT", "de", "Was ist auf dem Bild?"), ("es-MX", "es", "¿Qué hay en la imagen?"), ("zh-CN", "zh", "图片里是什么？")],
)
def test_the_page_speaks_the_language_of_the_browser(open_page: Open, pictures: Path, locale: str, language: str, heading: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(locale=locale, bypass_csp=True, reduced_motion="reduce")
    expect(page.locator("h1")).to_have_text(heading)
    expect(page.locator("html")).to_have_attribute("lang", language)
    choose(page, pictures / "green.png", pictures / "letter.png")
    answered(page, 2)
    page.locator("#mistakes summary").click()
    page.wait_for_selector(".matrix table")
    table = json.loads((WORDS / f"{language}.json").read_text(encoding="utf-8"))
    shown = set(map(str.strip, page.locator("body").inner_text().splitlines()))
    assert not shown & {english for english, translated in table.items() if english != translated}
    assert axe.run(page).response["violations"] == []


def test_a_language_that_is_missing_is_english_and_a_link_can_choose(open_page: Open) -> None:
    expect(open_page(locale="fi-FI").locator("h1")).to_have_text("What is in the picture?")
    open_page(query="?lang=es", locale="de-DE").locator("html[lang=es]").wait_for(state="attached")


def test_each_text_of_the_page_is_translated_with_the_same_values() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in WORDS.parent.glob("*.js"))
    texts = set(re.findall(r'\bt\(\s*(?:count === 1 \? "\{count\} picture" : )?"((?:[^"\\]|\\.)*)"', code)) | {"{count} picture"}
    html = re.sub(
        r"\{[%#].*?[%#]\}|<script.*?</script>|<noscript.*?</noscript>", "", (WORDS.parents[1] / "index.html").read_text(), flags=re.DOTALL
    )
    found = {" ".join(text.split()) for text in [*re.findall(r">([^<]+)<", html), *re.findall(r'aria-label="([^"]+)"', html)]}
    texts |= {text for text in found if re.search(r"[a-z]", text) and text not in ("cifar_ray", "API")}
    for path in WORDS.glob("*.json"):
        table = json.loads(path.read_text(encoding="utf-8"))
        assert set(table) == texts, path.name
        for english, translated in table.items():
            assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", translated)), f"{path.name}: {english}"

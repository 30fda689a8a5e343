"""The card of a model says what it is and where it fails, and a pushed folder is a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cifar_ray import cli
from cifar_ray.store import ModelStore, load_model, publishing
from cifar_ray.store.__main__ import main
from cifar_ray.store.gallery import GALLERY_FILE
from cifar_ray.store.publishing import CARD_FILES, model_card
from tests.deployments.conftest import SaveTiny, save_tiny

__all__ = ["save_tiny"]

FIGURES: dict[str, Any] = {"metrics": {"test_accuracy": 0.9, "test_ece": 0.012}, "image_counts": {"train": 800, "test": 100}}


@pytest.fixture
def storage(tmp_path: Path, save_tiny: SaveTiny) -> str:
    storage = str(tmp_path / "storage")
    save_tiny(storage, class_names=("cat", "猫", "eel"), **FIGURES)
    return storage


def test_the_card_has_figures_with_intervals_limits_data_and_metadata(storage: str) -> None:
    card = model_card(load_model("pets", storage))
    _, head, body = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["pipeline_tag"] == "image-classification"
    [result] = metadata["model-index"][0]["results"]
    assert (result["metrics"][0]["value"], result["dataset"]["split"]) == (0.9, "test")
    for text in (
        "# pets",
        "cat, 猫, eel",
        "| accuracy, test pictures | 90.00 % | 82.56–94.48 % | 100 |",
        "off by 1.2 points",
        "Guessing gives 33.3 %",
        "does not notice pictures of other things",
        "pets (800 train, 100 test)",
        "small_cnn",
        "trained from random ones",
    ):
        assert text in body


def test_the_card_says_that_the_training_pictures_include_labelled_requests(tmp_path: Path, save_tiny: SaveTiny) -> None:
    save_tiny(str(tmp_path), train_config={"with_reviews": True, "reviews_until": "2026-11-29T09:29:08.178108+00:00"})
    card = model_card(load_model("pets", str(tmp_path)))
    assert "The training pictures include those of requests that people labelled until 2026-11-29T09:29 UTC." in card


def test_a_model_that_was_not_measured_says_so(tmp_path: Path, save_tiny: SaveTiny) -> None:
    save_tiny(str(tmp_path))
    assert "It was not measured." in model_card(load_model("pets", str(tmp_path)))


def test_a_pushed_folder_is_a_model_without_the_users_pictures(storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, folder = ModelStore(storage), str(tmp_path / "folder")
    bundle = store.load("pets")
    store.save("pets", bundle.manifest, bundle.weights, {GALLERY_FILE: b'{"secret": "picture"}'})
    assert cli.run(lambda: main(["push", "pets@2", "hf-folder", folder, "--storage", storage])) == 0
    assert "hf upload USER/pets" in capsys.readouterr().out
    assert sorted(path.name for path in Path(folder).iterdir()) == ["README.md", "manifest.json", "model.safetensors"]
    again = load_model(folder, storage)
    assert again.manifest.class_names == bundle.manifest.class_names
    assert all(torch.equal(again.weights[name], bundle.weights[name]) for name in bundle.weights)


def test_the_commands_print_the_card_and_refuse_other_forms(storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(lambda: main(["card", "pets", "--storage", storage])) == 0
    assert "## Where it fails" in capsys.readouterr().out
    assert cli.run(lambda: main(["push", "pets", "zip", str(tmp_path), "--storage", storage])) == 2
    assert "'zip' is not a form to push. Available: hf-folder" in capsys.readouterr().err


def test_each_version_has_its_card_as_markdown_and_html_from_the_moment_it_is_saved(
    storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(storage, "models/pets/1")
    markdown, html = ((folder / name).read_text(encoding="utf-8") for name in CARD_FILES)
    assert "`pets` tells which one of these classes a picture shows: cat, 猫, eel." in markdown
    assert "<h2>Where it fails</h2>" in html
    assert "<td>82.56–94.48 %</td>" in html
    assert ModelStore(storage).check("pets").attachments == {}  # a card that somebody edits does not damage the model
    (folder / "card.md").write_text("my own words")
    assert ModelStore(storage).load("pets").version == 1
    assert cli.run(lambda: main(["card", "pets", "--format", "html", "--storage", storage])) == 0
    assert "<title>pets@1</title>" in capsys.readouterr().out


def test_a_class_name_cannot_put_a_script_into_the_card(tmp_path: Path, save_tiny: SaveTiny) -> None:
    names = ("<script>alert(1)</script>", "[eel](javascript:alert(1))", "<img src=x onerror=alert(1)>")
    save_tiny(str(tmp_path), class_names=names)
    page = (tmp_path / "models/pets/1/card.html").read_text()
    for bad in ("<script", "<img", 'href="javascript'):
        assert bad not in page


def test_a_card_that_cannot_be_written_keeps_no_model_from_being_saved(
    tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publishing, "_limits", lambda _: 1 / 0)
    save_tiny(str(tmp_path))
    assert load_model("pets", str(tmp_path)).version == 1
    assert "saved without its card: ZeroDivisionError" in caplog.text

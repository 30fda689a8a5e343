"""`python -m cifar_ray.evaluate` and `compare`, as a user runs them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_ray import __main__ as console
from cifar_ray.config import TrainConfig
from cifar_ray.config.data_choice import DataChoice
from cifar_ray.data import load_splits
from cifar_ray.errors import DataError
from cifar_ray.evaluation.examinations import evaluate_stored
from cifar_ray.evaluation.measures.corruptions import CORRUPTIONS, LEVELS
from cifar_ray.evaluation.scoring_on_ray import score_on_ray
from cifar_ray.evaluation.selection import select
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import Bundle, ModelStore
from cifar_ray.store.ensembling import save_ensemble
from cifar_ray.store.gallery import GALLERY_FILE

Models = tuple[Path, Callable[..., Bundle]]


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return bool(np.ptp(np.asarray(image.convert("L"))) > 0)


def test_every_figure_is_that_of_the_predictor_and_the_report_opens_offline(
    models: Models, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, save = models
    bundle = save("evaluated")
    assert console.main(["evaluate", "evaluated", "--storage", str(storage), "--robustness-images", "30"]) == 0
    folder = storage / "evaluations" / "evaluated@1" / "stripes-test"
    figures = json.loads((folder / "evaluation.json").read_text())

    test = load_splits(TrainConfig(dataset="folder", data_dir=str(pictures), image_size=16)).test
    assert test is not None
    prediction = Predictor(bundle, engine="torch").predict(test.images)
    predicted = prediction.logits.argmax(1)
    assert figures["accuracy"] == (predicted == test.labels).mean()
    recalls = [one["recall"] for one in figures["classes"]]
    assert figures["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert 0 <= figures["macro_f1"] <= 1
    assert figures["accuracy_interval"][0] < figures["accuracy"] < figures["accuracy_interval"][1]
    assert np.array(figures["confusion"]).sum() == len(test) == 30
    assert [one["predicted"] for one in figures["classes"]] == np.bincount(predicted, minlength=3).tolist()
    assert sum(one["count"] for one in figures["slices"]["brightness"]) == 30
    assert [(one["low"], one["high"]) for one in figures["slices"]["shorter side of the file (px)"]] == [(16, 16), (32, 32)]
    assert figures["robustness"]["images"] == 30
    assert figures["robustness"]["clean_accuracy"] == figures["accuracy"]
    assert len(figures["robustness"]["accuracy_by_level"]) == 12
    assert figures["calibration"]["expected_calibration_error"] == figures["calibration"]["expected_calibration_error_without_it"]
    assert figures["abstaining"] is None
    assert figures["cost"]["parameters"] == sum(tensor.numel() for tensor in bundle.weights.values())
    assert figures["top_5_accuracy"] is None

    shown = capsys.readouterr().out
    assert f"{100 * figures['accuracy']:.2f} %" in shown
    assert str(folder / "report.html") in shown
    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64)|<script|https?://", page)
    for name in ("confusion", "classes", "bias", "calibration", "slices", "robustness", "mistakes", "duplicates"):
        assert is_picture(folder / f"{name}.png")


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(ray_cluster: None, models: Models, tmp_path: Path) -> None:
    storage, save = models
    save("shared")
    found = []
    for place in ([], ["--num-workers", "2"]):
        out = tmp_path / str(len(place))
        flags = ["--split", "all", "--robustness-images", "30", "--out", str(out), *place]
        assert console.main(["evaluate", "shared", "--storage", str(storage), *flags]) == 0
        figures = json.loads((out / "evaluation.json").read_text())
        del figures["cost"]
        found.append(figures)
    assert found[0]["data"]["images"] == 270  # two blocks
    assert found[0] == found[1]


def test_progress_counts_each_prediction_and_ends_at_the_total(models: Models) -> None:
    storage, save = models
    save("counted")
    totals: dict[str, int] = {}
    steps: dict[str, list[int]] = {}

    def start(task: str, total: int) -> Callable[[int], None]:
        totals[task], steps[task] = total, []
        return steps[task].append

    evaluate_stored("counted", str(storage), DataChoice(split="all"), start, robustness_images=30, look_for_leakage=False)
    images, corrupted = 270, 30
    assert totals["evaluating, also on corrupted copies"] == images + corrupted * len(CORRUPTIONS) * LEVELS
    assert sum(steps["evaluating, also on corrupted copies"]) == totals["evaluating, also on corrupted copies"]
    assert len(steps["evaluating, also on corrupted copies"]) == 2 * (1 + len(CORRUPTIONS) * LEVELS), (
        "the first block alone would otherwise take a minute in silence"
    )


@pytest.mark.ray
def test_a_worker_that_finds_other_images_says_so_in_one_line(ray_cluster: None, models: Models) -> None:
    _, save = models
    bundle = save("displaced")
    data = select(bundle.manifest, DataChoice())
    fewer = dataclasses.replace(data, images=data.images.subset(np.arange(5)))
    with pytest.raises(DataError, match=r"^host .* has different images; copy the same data") as refusal:
        list(score_on_ray(bundle, fewer, None, num_workers=1, precision="auto", engine="torch"))
    assert "\n" not in str(refusal.value)


@pytest.mark.ray
def test_more_workers_than_the_cluster_holds_are_refused_at_once(
    ray_cluster: None, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, save = models
    save("crowded")
    assert console.main(["evaluate", "crowded", "--storage", str(storage), "--num-workers", "400"]) == 2
    assert "--num-workers 400: the cluster has 2 CPUs" in capsys.readouterr().err


def test_test_images_that_were_learnt_from_are_named_and_left_out(models: Models, tmp_path: Path) -> None:
    storage, save = models
    save("leaking")
    assert (
        console.main(["evaluate", "leaking", "--storage", str(storage), "--robustness-images", "0", "--out", str(tmp_path / "here")]) == 0
    )
    figures = json.loads((tmp_path / "here" / "evaluation.json").read_text())
    leaked = [pair for pair in figures["leakage"]["pairs"] if pair["image"].endswith(("000.png", "001.png", "002.png"))]
    assert {pair["image"]: Path(pair["other"]).name for pair in leaked} == {
        "test/horizontal/000.png": "030.png",
        "test/vertical/001.png": "031.png",
        "test/plain/002.png": "032.png",
    }
    assert figures["leakage"]["without_duplicates"]["correct"] <= figures["correct"]
    assert figures["robustness"] is None


def test_attach_keeps_a_version_that_shows_its_mistakes_and_leaves_production_alone(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, save = models
    bundle = save("attached")
    store = ModelStore(str(storage))
    store.promote("attached", 1)
    flags = ["--attach", "--no-leakage", "--robustness-images", "0", "--out", str(tmp_path)]
    assert console.main(["evaluate", "attached", "--storage", str(storage), *flags]) == 0
    assert "saved        attached@2" in capsys.readouterr().out
    made = store.load("attached@2")
    assert made.manifest.weights_sha256 == bundle.manifest.weights_sha256
    assert store.aliases("attached") == {"production": 1}
    gallery = json.loads(made.attachments[GALLERY_FILE])
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert [gallery["correct"][i] for i in range(3)] == [figures["confusion"][i][i] for i in range(3)]
    assert {(one["true"], one["predicted"]): one["count"] for one in gallery["confusions"]} == {
        (i, j): figures["confusion"][i][j] for i in range(3) for j in range(3) if i != j and figures["confusion"][i][j]
    }
    assert all(one["name"].startswith("test/") for one in gallery["mistakes"])


def test_another_folder_may_have_some_of_the_classes_only(models: Models, pictures: Path, tmp_path: Path) -> None:
    storage, save = models
    save("elsewhere")
    (tmp_path / "more").mkdir()
    for name in ("vertical", "plain"):
        (tmp_path / "more" / name).symlink_to(pictures / "test" / name)
    out = ["--out", str(tmp_path / "out"), "--robustness-images", "0"]
    assert (
        console.main(["evaluate", "elsewhere", "--storage", str(storage), "--data-dir", str(tmp_path / "more"), "--split", "all", *out])
        == 0
    )
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [one["images"] for one in figures["classes"]] == [0, 10, 10]
    assert figures["classes"][0]["recall"] is None
    assert figures["leakage"] is None


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["nobody"], "model nobody not found"),
        (["mistaken", "--split", "val", "--data-dir", "/nowhere"], "/nowhere"),
        (
            ["mistaken", "--dataset", "digits"],
            "class '0' of digits is not a class of the model. Classes of the model: horizontal, plain, vertical",
        ),
        (["unknown"], "the model does not name its training data"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(models: Models, flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage, save = models
    save("mistaken")
    save("unknown", train_config={})
    assert console.main(["evaluate", *flags, "--storage", str(storage)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_two_models_are_compared_image_by_image(models: Models, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, save = models
    bundles = [save("first", seed=1), save("second", seed=2, class_names=("vertical", "plain", "horizontal"), image_size_px=16)]
    assert console.main(["compare", "first", "second", "--storage", str(storage), "--out", str(tmp_path / "out")]) == 0
    figures = json.loads((tmp_path / "out" / "comparison.json").read_text())
    test = load_splits(TrainConfig(dataset="folder", data_dir=str(pictures), image_size=16)).test
    assert test is not None
    names = np.array(test.class_names)
    right = [
        np.array(bundle.manifest.class_names)[Predictor(bundle, engine="torch").predict(test.images).logits.argmax(1)] == names[test.labels]
        for bundle in bundles
    ]
    assert figures["only_first_right"] == (right[0] & ~right[1]).sum()
    assert figures["only_second_right"] == (right[1] & ~right[0]).sum()
    assert [one["accuracy"] for one in figures["models"]] == [share.mean() for share in right]
    assert sum(one["images"] for one in figures["classes"]) == 30
    assert figures["verdict"] in capsys.readouterr().out
    assert is_picture(tmp_path / "out" / "classes.png")


def test_a_model_compared_with_itself_does_not_differ(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, save = models
    save("itself")
    assert console.main(["compare", "itself", "itself@1", "--storage", str(storage), "--out", str(tmp_path)]) == 0
    # neither is named as the better one
    assert " or cifar-ray serve itself@1 " in capsys.readouterr().out
    figures = json.loads((tmp_path / "comparison.json").read_text())
    assert (figures["p_value"], figures["difference"], figures["agreement"]) == (1.0, 0.0, 1.0)
    assert figures["verdict"] == "no significant difference"


def test_the_summary_says_whether_these_are_the_test_images_of_the_training(
    models: Models, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, save = models
    test = load_splits(TrainConfig(dataset="folder", data_dir=str(pictures), image_size=16)).test
    assert test is not None
    save("known", test_fingerprint=test.fingerprint)
    save("other", test_fingerprint="f" * 64)
    flags = ["--storage", str(storage), "--out", str(tmp_path / "out"), "--robustness-images", "0", "--no-leakage"]
    for name, told in (("known", "stripes (the test split of its training)"), ("other", "stripes (not the test split of its training)")):
        assert console.main(["evaluate", name, *flags]) == 0
        assert told in capsys.readouterr().out
    assert console.main(["compare", "known", "other", *flags[:4]]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert notes == [f"{'note':12} other@1 was trained with another split; it may have been trained on some of these images"]


def test_on_validation_images_too_compare_names_a_model_of_another_split(
    models: Models, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, save = models
    trained = {"dataset": "folder", "data_dir": str(pictures), "val_fraction": 0.1}
    for name, more in (
        ("first", {"seed": 3}),
        ("same", {"seed": 9, "split_seed": 3}),
        ("apart", {"seed": 4}),
        ("far", {"dataset": "digits"}),
    ):
        settings = {"dataset": "digits", "val_fraction": 0.1} if name == "far" else trained | more
        save(name, train_config=settings)
    for name, told in (("same", False), ("apart", True), ("far", False)):
        flags = ["--storage", str(storage), "--out", str(tmp_path / name), "--split", "val"]
        assert console.main(["compare", "first", name, *flags]) == 0
        assert (f"{name}@1 was trained with another split" in capsys.readouterr().out) == told


def test_an_ensemble_is_evaluated_like_any_model(models: Models, pictures: Path, tmp_path: Path) -> None:
    storage, save = models
    save("member", seed=1)
    save("member", seed=2)
    store = ModelStore(str(storage))
    save_ensemble(store, "both", ["member@1", "member@2"])
    flags = ["--storage", str(storage), "--out", str(tmp_path / "out"), "--robustness-images", "0", "--data-dir", str(pictures)]
    assert console.main(["evaluate", "both", *flags]) == 0
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert figures["cost"]["parameters"] == 2 * sum(tensor.numel() for tensor in store.load("member@1").weights.values())
    assert {pair["image"] for pair in figures["leakage"]["pairs"]} >= {"test/horizontal/000.png", "test/plain/002.png"}


def test_a_network_that_always_says_the_same_is_called_biased(models: Models, tmp_path: Path) -> None:
    storage, save = models
    bundle = save("stubborn")
    weights = {**bundle.weights, "head.bias": torch.tensor([0.0, 0.0, 1e4])}
    ModelStore(str(storage)).save("stubborn", bundle.manifest, weights)
    flags = ["--storage", str(storage), "--out", str(tmp_path / "out"), "--robustness-images", "0", "--no-leakage"]
    assert console.main(["evaluate", "stubborn@latest", *flags]) == 0
    verdict = json.loads((tmp_path / "out" / "evaluation.json").read_text())["prediction_bias"]["verdict"]
    assert verdict.startswith("strong: ")
    assert "vertical +200.0 %" in verdict

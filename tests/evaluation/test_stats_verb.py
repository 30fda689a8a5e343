"""`python -m cifar_ray.stats`, as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_ray import __main__ as console
from cifar_ray.config import AugmentationConfig, TrainConfig, parse_config
from cifar_ray.data import channel_mean_std, load_splits
from cifar_ray.reports.dataset_report import augmented
from cifar_ray.training.suited_settings import choose_settings


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two uneven classes in several formats and sizes, with a copy, a broken file and a copy in the test split."""
    rng = np.random.default_rng(0)
    for split, name, count in (("train", "cat", 12), ("train", "dog", 4), ("test", "cat", 2)):
        (tmp_path / "pets" / split / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (4, 4 + number % 2, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).resize((24 + 8 * (number % 2), 24), Image.Resampling.BICUBIC)
            picture.convert("L" if number == 3 else "RGB").save(tmp_path / "pets" / split / name / f"{number}.{'png' if number else 'bmp'}")
    root = tmp_path / "pets"
    shutil.copy(root / "train" / "cat" / "2.png", root / "train" / "cat" / "copy.png")
    shutil.copy(root / "train" / "dog" / "1.png", root / "test" / "cat" / "leaked.png")
    (root / "train" / "cat" / "torn.png").write_bytes((root / "train" / "cat" / "4.png").read_bytes()[:60])
    return root


def test_the_split_and_the_advice_are_those_of_a_training(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["stats", str(pets), "--storage", str(tmp_path / "storage")]) == 0
    suited = choose_settings({"data_dir": str(pets)})
    splits = load_splits(parse_config(TrainConfig, suited.settings | {"data_dir": str(pets), "image_size": 32}))
    figures = json.loads((tmp_path / "storage" / "stats" / "pets" / "stats.json").read_text())
    assert figures["images"] == {name: len(part) for name, part in splits}
    assert suited.why
    assert suited.why in capsys.readouterr().out


def test_what_is_wrong_with_a_folder_is_counted_and_named(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["stats", str(pets), "--val-fraction", "0", "--storage", str(tmp_path / "storage")]) == 0
    place = tmp_path / "storage" / "stats" / "pets"
    figures = json.loads((place / "stats.json").read_text())
    assert figures["images"] == {"train": 17, "test": 3}
    assert figures["classes"] == [{"name": "cat", "train": 13, "test": 3}, {"name": "dog", "train": 4, "test": 0}]
    assert figures["imbalance"] == 13 / 4
    assert figures["files"]["count"] == 21
    assert figures["files"]["formats"] == {"PNG": 18, "BMP": 3}
    assert figures["files"]["modes"] == {"RGB": 19, "L": 2}
    assert figures["files"]["shorter_side_px"] == {"smallest": 24, "median": 24, "largest": 24}
    (broken,) = figures["broken"]
    assert broken["file"] == str(pets / "train" / "cat" / "torn.png")
    train = load_splits(TrainConfig(dataset="folder", data_dir=str(pets), val_fraction=0)).train
    assert (tuple(figures["channel_mean"]), tuple(figures["channel_std"])) == channel_mean_std(train)

    within, _, between = figures["duplicates"]
    pairs = [(pair["image"], pair["other"], pair["identical"]) for pair in within["pairs"]]
    assert ("train/cat/copy.png", "train/cat/2.png", True) in pairs
    assert ("test/cat/leaked.png", "train/dog/1.png") in [(pair["image"], pair["other"]) for pair in between["pairs"]]

    shown = capsys.readouterr().out
    assert "imbalanced: 4 (dog) to 13 (cat)" in shown
    assert "torn.png" in shown
    assert {"classes.png", "augmented.png", "class-000.png", "class-001.png", "stats.html"} <= {path.name for path in place.iterdir()}


def test_a_folder_that_training_refuses_has_all_its_broken_files_named(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (pets / "train" / "dog").iterdir():
        path.write_bytes(b"broken")
    assert console.main(["stats", "--data-dir", str(pets)]) == 2
    shown = capsys.readouterr()
    assert "torn.png" in shown.out
    assert shown.out.count("train/dog/") == 4
    assert shown.err.splitlines()[-1].startswith("error: ")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Everything that `stats` gives advice on."""
    rng = np.random.default_rng(1)
    for name, count in (("ant", 60), ("bee", 4), ("cat", 30)):
        (tmp_path / "album" / name).mkdir(parents=True)
        for number in range(count):
            width = 20 if (name, number) == ("cat", 7) else 8
            pixels = rng.integers(0, 256, (6, width, 3), dtype=np.uint8)
            size = (10 * width, 60)
            Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "album" / name / f"{number:02}.jpg", quality=90)
    root = tmp_path / "album"
    for number in range(3):
        shutil.copy(root / "cat" / "11.jpg", root / "cat" / f"copy{number}.jpg")
    (root / "ant" / "17.jpg").write_bytes(b"broken")
    lost = Image.new("RGB", (80, 60), "white")
    lost.paste("grey", (30, 25, 50, 35))
    lost.save(root / "ant" / "lost.jpg")
    return root


def test_advice_before_training(album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["stats", str(album), "--no-duplicates", "--out", str(tmp_path / "out")]) == 0
    advice = [line.partition(" ")[2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("advice")]
    assert advice == [
        "uneven: bee (4) below a tenth of ant (60); add images of the small classes",
        "few images: bee (4) below 5; add more, 50 and more a class are better",
        "bursts: 4 near-duplicates in 1 group; they count as few different images",
        "broken: training leaves out 1 unreadable file; repair or replace each",
        f"odd shapes: {album}/cat/07.jpg (200×60) longer than 3:1; crop them, or choose --resize-policy",
        "unlike the rest: ant/lost.jpg; look at each, and remove what is no picture",
    ]
    figures = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert figures["advice"] == advice
    assert [one["file"] for one in figures["unlike"]] == ["ant/lost.jpg"]
    assert (tmp_path / "out" / "unlike.png").exists()
    assert "Unlike the rest" in (tmp_path / "out" / "stats.html").read_text()


def test_a_sound_folder_gets_no_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    for name in ("ant", "bee"):
        (tmp_path / "sound" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(tmp_path / "sound" / name / f"{number}.jpg")
    assert console.main(["stats", str(tmp_path / "sound"), "--no-duplicates", "--out", str(tmp_path / "out")]) == 0
    assert "advice" not in capsys.readouterr().out


def test_a_folder_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--data-dir", str(tmp_path)], ["--dataset", "cifar10"]):
        assert console.main(["stats", "photos", *flags]) == 2
        assert "error: photos: give a folder, or --dataset and --data-dir, not both" in capsys.readouterr().err


def test_augmented_samples_are_what_the_training_loader_gives() -> None:
    images = np.zeros((3, 16, 16, 3), np.uint8)
    images[:, :, :8] = np.array([50, 120, 250]).reshape(3, 1, 1, 1)
    still = AugmentationConfig(flip="none", translate_px=0)
    same = augmented(images, still, ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)), seed=0)
    assert all(np.array_equal(same[:, epoch], images) for epoch in range(same.shape[1]))
    turned = augmented(images, AugmentationConfig(flip="alternating", translate_px=0), ((0.5,) * 3, (0.2,) * 3), seed=0)
    assert np.array_equal(turned[:, 0], turned[:, 1, :, ::-1])
    assert not np.array_equal(turned[:, 0], turned[:, 1])
    mixed = augmented(images, AugmentationConfig(flip="none", translate_px=0, cutmix=1.0), ((0.5,) * 3, (0.2,) * 3), seed=0)
    shares = [[(versions[:, :, :8] == other[:, :8]).mean() for other in images] for versions in mixed]
    assert np.argmax(shares, axis=1).tolist() == [0, 1, 2]


def test_a_data_set_that_is_no_files_has_figures_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["stats", "--dataset", "digits", "--image-size", "8", "--no-duplicates", "--out", str(tmp_path / "out")]) == 0
    figures = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert figures["images"] == {"train": 1458, "val": 160, "test": 179}
    assert (figures["files"], figures["broken"], figures["duplicates"]) == (None, [], None)
    assert "nearly balanced" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "seen"),
    [
        ([], "no flip, shift up to 2 px, no cutout"),
        (
            ["--recipe", "airbench94", "--augmentation.cutout-px", "3"],
            "horizontal flip every other epoch, shift up to 2 px, cutout 3 px",
        ),
        (["--augmentation.policy", "randaugment", "--augmentation.mixup", "0.2"], "RandAugment, mixup"),
    ],
)
def test_the_augmentation_shown_is_that_of_the_recipe_and_the_flags(tmp_path: Path, flags: list[str], seen: str) -> None:
    assert console.main(["stats", "--dataset", "digits", "--no-duplicates", "--out", str(tmp_path), *flags]) == 0
    assert seen in (tmp_path / "stats.html").read_text()

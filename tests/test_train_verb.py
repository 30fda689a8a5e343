"""`python -m cifar_ray.train`, as a user runs it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_ray import __main__ as console
from cifar_ray.store import ModelStore


def test_a_folder_of_images_becomes_a_model_of_its_own_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "Shades of grey" / name).mkdir(parents=True)
        for number in range(40):
            pixels = np.clip(rng.normal(level, 20, (24, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "Shades of grey" / name / f"{number}.png")
    folder = ["--dataset", "folder", "--data-dir", str(tmp_path / "Shades of grey"), "--recipe", "small_cnn", "--cluster", "local"]
    options = ["--batch-size", "16", "--epochs", "4", "--storage", str(tmp_path / "storage")]
    assert console.main(["train", *folder, *options]) == 0
    store = ModelStore(str(tmp_path / "storage"))
    (name,) = store.names()
    assert store.manifest(name).class_names == ("dark", "light")
    assert store.manifest(name).metrics["test_accuracy"] == 1.0
    assert "in this process, on " in capsys.readouterr().err


def test_a_missing_folder_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["train", "--dataset", "folder", "--data-dir", str(tmp_path / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line


def test_a_batch_larger_than_the_data_is_refused_before_ray_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["train", "--dataset", "digits", "--batch-size", "5000"]) == 2
    assert "batch_size: 5000 exceeds the 1458 training images; pass --batch-size 128" in capsys.readouterr().err


def test_an_unknown_architecture_is_refused_before_data_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["train", "--model", "resnet19"]) == 2
    assert "Available: airnet, airnet96, " in capsys.readouterr().err

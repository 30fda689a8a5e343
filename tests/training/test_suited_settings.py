"""Settings that suit a folder: what is chosen without a flag, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_ray.errors import DataError
from cifar_ray.training.suited_settings import _finetuning_epochs, choose_settings, find_dataset


def fill(folder: Path, count: int, size: tuple[int, int] = (120, 100)) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")


def test_photographs_get_a_pretrained_network_and_one_held_out_part(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "photos" / name, 10)
    suited = choose_settings({"data_dir": str(tmp_path / "photos")})
    chosen = {
        key: suited.settings[key] for key in ("dataset", "recipe", "method", "image_size", "val_fraction", "test_fraction", "batch_size")
    }
    assert chosen == {
        "dataset": "folder",
        "recipe": "photos",
        "method": "auto",
        "image_size": 224,
        "val_fraction": 0.2,
        "test_fraction": 0.0,
        "batch_size": 10,
    }
    assert suited.why == (
        "20 pictures of 2 classes, typically 120 px: a pretrained network (timm:tf_efficientnet_lite0, 224 px), "
        "because it needs few pictures; "
        "held out: 20 % for val"
    )


@pytest.mark.parametrize(("count", "epochs"), [(8, 30), (1250, 30), (2500, 15), (3750, 10), (7500, 5), (50_000, 5)])
def test_fewer_photographs_are_fine_tuned_for_more_epochs(count: int, epochs: int) -> None:
    assert _finetuning_epochs(count, default=15) == epochs


def test_small_images_keep_the_network_of_small_images_with_a_batch_that_fits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, 40, (32, 32))
    settings = choose_settings({"data_dir": str(tmp_path)}).settings
    assert (settings["model"], settings["method"], settings["batch_size"], settings["epochs"]) == ("airnet", "scratch", 8, 30)


def test_below_five_pictures_a_class_cross_validation_judges(tmp_path: Path) -> None:
    fill(tmp_path / "a", 10)
    fill(tmp_path / "b", 4)
    suited = choose_settings({"data_dir": str(tmp_path)})
    assert (suited.settings["val_fraction"], suited.settings["test_fraction"]) == (0.0, 0.0)
    assert suited.why.endswith("a class has fewer than 5 pictures, so cross-validation judges instead of one small split")


def test_a_users_own_validation_folder_judges_and_nothing_more_is_held_out(tmp_path: Path) -> None:
    for part in ("Training", "valid"):
        for name in ("a", "b"):
            fill(tmp_path / part / name, 6)
    suited = choose_settings({"data_dir": str(tmp_path)})
    assert suited.settings["test_fraction"] == 0.0
    assert suited.why.endswith("judged on your val")


def test_pictures_far_from_square_bring_a_comparison_of_resize_policies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, 6, (300, 100))
    suited = choose_settings({"data_dir": str(tmp_path)})
    assert suited.settings["resize_policy"] == "auto"
    assert "pad, crop and squash are compared" in suited.why


@pytest.mark.parametrize("file", ["cifar-10-batches-py", "cifar-10-python.tar.gz"])
def test_a_folder_with_cifar_files_is_cifar(tmp_path: Path, file: str) -> None:
    (tmp_path / file).mkdir()
    assert find_dataset(str(tmp_path)) == "cifar10"
    assert find_dataset(str(tmp_path / "cifar-10-batches-py")) == "cifar10"


def test_photographs_with_dataset_cifar10_are_refused_instead_of_ignored(tmp_path: Path) -> None:
    fill(tmp_path / "a", 1)
    with pytest.raises(DataError, match=r"found no files of cifar10 .*leave out --dataset$"):
        choose_settings({"dataset": "cifar10", "data_dir": str(tmp_path)})


def test_an_empty_folder_may_receive_the_download_of_cifar10(tmp_path: Path) -> None:
    assert choose_settings({"dataset": "cifar10", "data_dir": str(tmp_path)}).settings["dataset"] == "cifar10"


def test_without_a_folder_nothing_changes() -> None:
    suited = choose_settings({})
    assert (suited.settings["recipe"], suited.settings["dataset"], suited.why) == ("airbench94", "cifar10", "")


def test_a_mistyped_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder not found"):
        choose_settings({"data_dir": str(tmp_path / "fotos")})

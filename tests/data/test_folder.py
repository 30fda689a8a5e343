from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_ray.config import TrainConfig
from cifar_ray.data import DatasetSplits, folder, load_splits
from cifar_ray.data.decode import decode_image, fit
from cifar_ray.data.listing.layouts import Listing, list_folder
from cifar_ray.errors import DataError


def load(root: Path, **settings: Any) -> DatasetSplits:
    return load_splits(TrainConfig(dataset="folder", data_dir=str(root), **settings))


@pytest.fixture
def pets(tmp_path: Path, make_pictures: Callable[..., list[Path]]) -> Path:
    """Two classes in train, val and test."""
    root = tmp_path / "pets"
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for name in ("dog", "cat"):
            make_pictures(root / split / name, count, size=(20, 10))
    return root


@pytest.fixture
def flat(tmp_path: Path, make_pictures: Callable[..., list[Path]]) -> Path:
    """Class folders only."""
    for name in ("dog", "cat"):
        make_pictures(tmp_path / "flat" / name, 30)
    return tmp_path / "flat"


def test_train_val_and_test_folders_are_the_splits(pets: Path) -> None:
    splits = load(pets)
    assert splits.name == "pets"
    assert splits.train.class_names == ("cat", "dog")
    assert [(name, part.class_counts().tolist()) for name, part in splits] == [("train", [6, 6]), ("val", [2, 2]), ("test", [3, 3])]


@pytest.mark.parametrize("policy", ["pad", "crop", "squash"])
def test_pixels_are_those_of_decode_and_fit(pets: Path, policy: Any) -> None:
    splits = load(pets, image_size=16, resize_policy=policy)
    expected = [fit(decode_image(path), 16, policy) for path in sorted((pets / "train").glob("*/*"))]
    assert np.array_equal(splits.train.images, np.stack(expected))
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6


def test_one_level_of_class_folders_is_split_by_seed(flat: Path) -> None:
    splits = load(flat)
    assert [(name, part.class_counts().tolist()) for name, part in splits] == [("train", [24, 24]), ("val", [3, 3]), ("test", [3, 3])]
    assert splits.fingerprint == load(flat).fingerprint != load(flat, seed=1).fingerprint


def test_missing_val_is_drawn_from_train(pets: Path) -> None:
    shutil.rmtree(pets / "val")
    splits = load(pets, val_fraction=0.5)
    assert [(name, len(part)) for name, part in splits] == [("train", 6), ("val", 6), ("test", 6)]


def test_a_class_may_be_called_train(flat: Path) -> None:
    (flat / "dog").rename(flat / "train")
    assert load(flat).train.class_names == ("cat", "train")


def test_nested_pictures_count_and_hidden_or_other_files_do_not(flat: Path, make_pictures: Callable[..., list[Path]]) -> None:
    make_pictures(flat / "cat" / "tabby" / "kittens", 5)
    make_pictures(flat / "cat" / ".thumbnails", 5)
    make_pictures(flat / ".git", 5)
    (flat / "cat" / "notes.txt").write_text("x")
    (flat / "cat" / "._000.png").write_bytes(b"x")
    (flat / "README.md").write_text("x")
    (flat / "cat" / "000.png").rename(flat / "cat" / "000.PNG")
    assert load(flat, val_fraction=0, test_fraction=0).train.class_counts().tolist() == [35, 30]


def test_val_and_test_need_not_have_every_class(pets: Path) -> None:
    shutil.rmtree(pets / "val" / "cat")
    splits = load(pets)
    assert splits.val is not None
    assert splits.val.class_counts().tolist() == [0, 2]


def test_other_folders_beside_the_splits_are_named(
    pets: Path, make_pictures: Callable[..., list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    make_pictures(pets / "valid" / "dog")
    load(pets)
    assert "ignoring folders other than train, val and test: valid" in caplog.text


def test_the_second_load_does_not_decode(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(pets)
    monkeypatch.setattr(folder, "decode_square", None)
    assert load(pets).fingerprint == first.fingerprint


def test_a_changed_file_size_or_policy_decodes_again(pets: Path) -> None:
    prints = {load(pets).fingerprint, load(pets, image_size=16).fingerprint, load(pets, resize_policy="crop").fingerprint}
    Image.new("RGB", (20, 10)).save(pets / "train" / "dog" / "000.png")
    prints.add(load(pets).fingerprint)
    os.utime(pets / "train" / "dog" / "001.png", ns=(1, 1))  # as far as the listing can tell, another picture
    (pets / "test" / "dog" / "000.png").unlink()
    prints.add(load(pets).fingerprint)
    assert len(prints) == 5


def test_equal_looking_folders_elsewhere_do_not_share_an_entry(tmp_path: Path, flat: Path) -> None:
    twin = shutil.copytree(flat, tmp_path / "other" / "flat")  # with the times of change
    assert list_folder(flat).fingerprint() != list_folder(twin).fingerprint()


def test_a_broken_picture_is_named_and_left_out(
    tmp_path: Path, make_pictures: Callable[..., list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_pictures(tmp_path / "many" / "a", 150) + make_pictures(tmp_path / "many" / "b", 150)
    sound = load(tmp_path / "many", val_fraction=0, test_fraction=0).train
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    paths[200].unlink()
    paths[200].symlink_to("nowhere.png")
    with caplog.at_level(logging.INFO):
        rest = load(tmp_path / "many", val_fraction=0, test_fraction=0).train
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"left out 2 of 300 pictures as damaged: {paths[3]}" in line
    assert str(paths[200]) in line
    kept = np.delete(np.arange(300), [3, 200])
    assert np.array_equal(rest.images, sound.images[kept])
    assert np.array_equal(rest.labels, sound.labels[kept])


def test_many_broken_pictures_are_counted_in_one_line_and_training_goes_on(
    tmp_path: Path, make_pictures: Callable[..., list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    paths = make_pictures(tmp_path / "many" / "a", 20) + make_pictures(tmp_path / "many" / "b", 20)
    for path in (*paths[:10], *paths[20:30]):
        path.write_bytes(b"broken")
    with caplog.at_level(logging.DEBUG):
        assert load(tmp_path / "many", val_fraction=0, test_fraction=0).train.class_counts().tolist() == [10, 10]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"{tmp_path / 'many'}: left out 20 of 40 pictures as damaged: ")
    assert line.endswith("; and 17 more")
    assert [str(path) in line for path in paths[:4]] == [True, True, True, False]
    named = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG and "left out" in record.getMessage()]
    assert len(named) == 17


def test_a_class_that_is_mostly_broken_is_refused_naming_the_first(tmp_path: Path, make_pictures: Callable[..., list[Path]]) -> None:
    make_pictures(tmp_path / "many" / "a", 100)
    for path in make_pictures(tmp_path / "many" / "b", 10)[:6]:
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"more than half of the 10 pictures of class 'b' .*The first are: .*000\.png.*001\.png.*002\.png"):
        load(tmp_path / "many")


def test_a_class_or_split_with_only_broken_pictures_is_refused(tmp_path: Path, make_pictures: Callable[..., list[Path]]) -> None:
    make_pictures(tmp_path / "many" / "train" / "a", 200)
    (lone,) = make_pictures(tmp_path / "many" / "train" / "b", 1)
    lone.write_bytes(b"broken")
    with pytest.raises(DataError, match="more than half of the 1 pictures of class 'b' are damaged"):
        load(tmp_path / "many")
    make_pictures(tmp_path / "many" / "train" / "b", 2)
    make_pictures(tmp_path / "many" / "val" / "b", 1)[0].write_bytes(b"broken")
    with pytest.raises(DataError, match="all pictures of split val are damaged"):
        load(tmp_path / "many")


def remove(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, r"--data-dir .*pets: folder not found"),
        (lambda root: (shutil.rmtree(root), root.write_text("x")), r"--data-dir .*pets: not a folder"),
        (remove, "found no files, no class folders; expected DIR/<class>/… or DIR/train/<class>/…"),
        (lambda root: shutil.rmtree(root / "train" / "cat"), r"train: only one class folder found \(dog\)"),
        (lambda root: remove(root / "train" / "cat"), r"train/cat: found no files, no pictures; add some \(\.jpg"),
        (
            lambda root: [remove(root / "train" / name) for name in ("cat", "dog")],
            r"train: found no files, no pictures in its class folders\. Supported: \.jpg",
        ),
        (lambda root: remove(root / "val"), r"val: found no files, no pictures in its class folders"),
        (lambda root: (root / "val" / "cat").rename(root / "val" / "lion"), r"val: class 'lion' has no folder in .*train"),
        (lambda root: (root / "test" / "cat").rename(root / "test" / "lion"), r"test: class 'lion' has no folder in .*train"),
        (lambda root: (root / "train" / "cat").rename(root / "train" / "c\nat"), r"class folder 'c\\nat' has unprintable characters"),
    ],
)
def test_a_folder_unfit_for_training_is_refused_in_one_line(pets: Path, change: Any, message: str) -> None:
    change(pets)
    with pytest.raises(DataError, match=message) as refused:
        load(pets)
    assert "\n" not in str(refused.value)


def test_a_uri_of_cifar_is_refused() -> None:
    with pytest.raises(DataError, match=r"s3://bucket/pets: cifar10 is read from a local folder"):
        load_splits(TrainConfig(dataset="cifar10", data_dir="s3://bucket/pets"))


@pytest.mark.parametrize(
    ("folder_name", "name"),
    [("My Pets (2024)", "My-Pets-2024"), ("Vögel", "Vogel"), (".hidden", "hidden"), ("花", "folder"), ("x" * 200, "x" * 100)],
)
def test_the_name_is_valid_for_a_model(tmp_path: Path, folder_name: str, name: str) -> None:
    listing = Listing(tmp_path / folder_name, (), {})
    assert TrainConfig(save_as=listing.name).save_as == name


def test_each_image_knows_its_file_whether_decoded_drawn_or_cached(flat: Path) -> None:
    (flat / "cat" / "004.png").write_bytes(b"broken")
    (flat / "dog" / "005.png").rename(flat / "dog" / "dög.png")
    for splits in (load(flat), load(flat)):
        for _, part in splits:
            assert all(np.array_equal(fit(decode_image(flat / part.name_of(row)), 32, "pad"), part.images[row]) for row in range(len(part)))
    names = {part.name_of(row) for _, part in splits for row in range(len(part))}
    assert len(names) == 59
    assert "dog/dög.png" in names

"""Near-duplicates of one class stay together in drawn splits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cifar_ray.config import TrainConfig
from cifar_ray.data import bursts, load_splits, open_splits, splits
from cifar_ray.data.bursts import count_bursts, find_bursts, sketch
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.decode import fit
from cifar_ray.data.splits import complete


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Colour clouds: details of every size, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for side in (4, 8, 16, 32)
    ]
    return Image.fromarray(np.mean([np.asarray(layer) for layer in layers], 0).astype(np.uint8))


def shots(seed: int, count: int) -> list[Image.Image]:
    """One scene from a hand that moves a little, in changing light."""
    rng = np.random.default_rng(seed)
    scene = photo(seed)
    made = []
    for _ in range(count):
        left, top = rng.integers(0, 5, 2).tolist()
        made.append(ImageEnhance.Brightness(scene.crop((left, top, left + 108, top + 81))).enhance(rng.uniform(0.85, 1.15)))
    return made


def arrays(pictures: list[Image.Image], size_px: int = 48) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([fit(picture, size_px, "pad") for picture in pictures])


def groups(first: np.ndarray[Any, np.dtype[np.int64]]) -> list[list[int]]:
    return [np.flatnonzero(first == number).tolist() for number in np.unique(first) if (first == number).sum() > 1]


def test_the_shots_of_one_scene_are_found_and_nothing_else() -> None:
    pictures = [*shots(1, 10), *(photo(seed) for seed in range(10, 40)), *shots(2, 3)]
    assert groups(find_bursts(*sketch(arrays(pictures)), np.zeros(43, np.int64))) == [list(range(10)), [40, 41, 42]]


def test_pictures_of_other_classes_are_not_compared() -> None:
    pictures = [*shots(1, 4), *(photo(seed) for seed in range(10, 30))]
    labels = np.array([0, 0, 1, 1, *[0] * 10, *[1] * 10])
    assert groups(find_bursts(*sketch(arrays(pictures)), labels)) == [[0, 1], [2, 3]]


def test_identical_pictures_are_found_even_without_details() -> None:
    plain = [Image.new("RGB", (60, 40), (200, 10 * number, 0)) for number in (0, 1, 0, 5)]
    assert groups(find_bursts(*sketch(arrays([*plain, *(photo(seed) for seed in range(4))])), np.zeros(8, np.int64))) == [[0, 2]]


def test_black_borders_alone_make_no_burst() -> None:
    """Padded pictures of one shape all have the same edges."""
    tall = [photo(seed, (40, 120)) for seed in range(60)]
    assert groups(find_bursts(*sketch(arrays(tall)), np.zeros(60, np.int64))) == []


def test_a_group_of_most_of_a_class_is_no_burst() -> None:
    pictures = [*shots(1, 10), *(photo(seed) for seed in range(10, 15))]
    assert groups(find_bursts(*sketch(arrays(pictures)), np.zeros(15, np.int64))) == []


def test_large_classes_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bursts, "MAX_PICTURES_PER_CLASS", 10)
    assert groups(find_bursts(*sketch(arrays([*shots(1, 5), *map(photo, range(10, 16))])), np.zeros(11, np.int64))) == []


def test_the_order_of_a_class_does_not_matter() -> None:
    pictures = [*shots(1, 6), *(photo(seed) for seed in range(10, 40))]
    order = np.random.default_rng(0).permutation(36)
    found = find_bursts(*sketch(arrays([pictures[row] for row in order])), np.zeros(36, np.int64))
    assert {order[row] for row in groups(found)[0]} == set(range(6))


def dataset(sizes: list[int], classes: int = 2) -> ImageDataset:
    """Each class has bursts of these sizes; images carry their number."""
    first = np.concatenate([np.full(size, sum(sizes[:number])) for number, size in enumerate(sizes)])
    count = len(first)
    numbers = np.concatenate([first + count * label for label in range(classes)])
    images = np.zeros((count * classes, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count * classes)
    return ImageDataset(images, np.repeat(np.arange(classes), count), tuple("abc"[:classes]), bursts=numbers)


def parts_of(found: DatasetSplits) -> dict[str, ImageDataset]:
    return dict(found)


@pytest.mark.parametrize("seed", range(10))
def test_no_burst_is_on_two_sides(seed: int) -> None:
    drawn = parts_of(complete(DatasetSplits("x", dataset([10, 5, 5, *[1] * 40]), None, None), 0.1, 0.2, seed))
    sides = {name: set(part.bursts.tolist()) for name, part in drawn.items() if part.bursts is not None}
    assert not sides["train"] & sides["val"]
    assert not sides["train"] & sides["test"]
    assert not sides["val"] & sides["test"]
    assert sum(map(len, drawn.values())) == 120
    assert drawn["test"].class_counts().tolist() == [12, 12]
    assert drawn["val"].class_counts().tolist() == [5, 5]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [[2, 2, 2], [5, 1, 1], [9, 9, 9], [3, 2, 1]])
def test_with_few_bursts_every_class_is_still_on_each_side_and_none_is_divided(sizes: list[int], seed: int) -> None:
    drawn = parts_of(complete(DatasetSplits("x", dataset(sizes), None, None), 0.1, 0.1, seed))
    assert all((part.class_counts() >= 1).all() for part in drawn.values())
    numbers = [number for part in drawn.values() for number in np.unique(part.bursts)]
    assert len(numbers) == len(set(numbers)) == 6


def test_where_it_is_impossible_a_burst_is_divided(caplog: pytest.LogCaptureFixture) -> None:
    drawn = parts_of(complete(DatasetSplits("x", dataset([4, 4]), None, None), 0.1, 0.1, seed=0))
    assert all((part.class_counts() >= 1).all() for part in drawn.values())


def test_lone_pictures_are_drawn_as_if_nothing_had_been_searched() -> None:
    searched = dataset([1] * 50)
    plain = ImageDataset(searched.images, searched.labels, searched.class_names)
    one, other = (complete(DatasetSplits("x", train, None, None), 0.2, 0.1, seed=5) for train in (searched, plain))
    assert one.fingerprint == other.fingerprint


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for number, name in enumerate(("cup", "key")):
        (tmp_path / "album" / name).mkdir(parents=True)
        pictures = [*shots(100 + number, 8), *(photo(200 + 50 * number + seed) for seed in range(20))]
        for row, picture in enumerate(pictures):
            picture.save(tmp_path / "album" / name / f"{row:02}.png")
    (tmp_path / "album" / "cup" / "15.png").write_bytes(b"broken")
    return tmp_path / "album"


def sides(parts: Any, root: Path) -> dict[str, list[str]]:
    return {name: [part.name_of(row) for row in range(len(part))] for name, part in parts if name != "train"}


def test_a_folder_keeps_its_bursts_together_and_says_so(album: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(4):
        config = TrainConfig(dataset="folder", data_dir=str(album), seed=seed, val_fraction=0.3, test_fraction=0.3)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            drawn = parts_of(load_splits(config))
        assert "16 near-duplicates in 2 groups stay on one side of each split" in caplog.text
        for name in ("cup", "key"):
            holding = [
                split
                for split, part in drawn.items()
                if {f"{name}/{row:02}.png" for row in range(8)} & set(map(part.name_of, range(len(part))))
            ]
            assert len(holding) == 1


def test_streamed_splits_are_the_same(album: Path) -> None:
    for seed in range(3):
        config = TrainConfig(dataset="folder", data_dir=str(album), seed=seed, val_fraction=0.3, test_fraction=0.3)
        held, streamed = load_splits(config), open_splits(config.model_copy(update={"stream": "always"}))
        assert sides(held, album) == sides(streamed, album)
        assert held.fingerprint == streamed.fingerprint
        for (_, one), (_, other) in zip(held, streamed, strict=True):  # cross-validation must not divide them either
            assert one.bursts is not None
            assert other.bursts is not None
            assert np.array_equal(*(np.unique(part.bursts, return_inverse=True)[1] for part in (one, other)))


def test_huge_folders_are_not_searched_and_the_log_says_so(
    album: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from cifar_ray.data import folder, streamed

    for module in (folder, splits, streamed):
        monkeypatch.setattr(module, "MAX_PICTURES", 50)
    config = TrainConfig(dataset="folder", data_dir=str(album), val_fraction=0.3, test_fraction=0.3)
    with caplog.at_level(logging.INFO):
        held, streams = load_splits(config), open_splits(config.model_copy(update={"stream": "always"}))
    assert held.train.bursts is None
    assert streams.train.bursts is None
    assert held.fingerprint == streams.fingerprint
    assert "without a search for near-duplicates, because there are more than 50 pictures" in caplog.text


def test_data_sets_that_are_no_files_are_not_searched(make_pictures: Callable[..., list[Path]]) -> None:
    train = load_splits(TrainConfig(dataset="digits", image_size=8)).train
    assert train.bursts is None


def test_counting() -> None:
    assert count_bursts(np.array([0, 0, 2, 0, 4, 4])) == (5, 2)

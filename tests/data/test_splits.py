from __future__ import annotations

import logging

import numpy as np
import pytest

from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.splits import complete
from cifar_ray.errors import DataError


def numbered(*counts: int) -> ImageDataset:
    """Images that carry their own index, so that each can be followed through a split."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(len(labels)), 256)
    return ImageDataset(images, labels, tuple("abcdefgh"[: len(counts)]))


def indices(part: ImageDataset | None) -> list[int]:
    assert part is not None
    return [int(high) * 256 + int(low) for high, low in part.images[:, 0, 0, :2]]


def found(train: ImageDataset, val: ImageDataset | None = None, test: ImageDataset | None = None) -> DatasetSplits:
    return DatasetSplits("letters", train, val, test)


def test_every_image_is_in_exactly_one_split_with_its_label() -> None:
    train = numbered(100, 50, 30)
    splits = complete(found(train), 0.1, 0.2, seed=0)
    assert sorted(index for _, part in splits for index in indices(part)) == list(range(180))
    for _, part in splits:
        assert (part.labels == train.labels[indices(part)]).all()


def test_each_class_keeps_its_share() -> None:
    splits = complete(found(numbered(100, 50, 30)), 0.1, 0.2, seed=0)
    assert splits.test is not None
    assert splits.val is not None
    assert splits.test.class_counts().tolist() == [20, 10, 6]
    assert splits.val.class_counts().tolist() == [8, 4, 2]
    assert splits.train.class_counts().tolist() == [72, 36, 22]


def test_the_seed_alone_decides() -> None:
    first, again, other = (complete(found(numbered(100, 50)), 0.1, 0.2, seed) for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_test_images_do_not_depend_on_validation() -> None:
    with_val, without = (complete(found(numbered(100, 50)), fraction, 0.2, seed=0) for fraction in (0.3, 0.0))
    assert indices(with_val.test) == indices(without.test)
    assert without.val is None


@pytest.mark.parametrize("fraction", [0.01, 0.9])
def test_small_classes_are_in_every_split(fraction: float) -> None:
    splits = complete(found(numbered(3, 4)), fraction, fraction, seed=0)
    assert all((part.class_counts() >= 1).all() for _, part in splits)


@pytest.mark.parametrize(
    ("count", "val", "test", "split", "needed"), [(1, 0.1, 0.0, "val", 2), (1, 0.0, 0.1, "test", 2), (2, 0.1, 0.1, "test", 3)]
)
def test_a_class_too_small_to_share_is_named(count: int, val: float, test: float, split: str, needed: int) -> None:
    with pytest.raises(
        DataError, match=rf"class 'b' has {count} images, but a {split} split needs at least {needed};.*--{split}-fraction 0"
    ):
        complete(found(numbered(9, count)), val, test, seed=0)


def test_fractions_of_0_keep_the_array_itself() -> None:
    train = numbered(9, 9)
    splits = complete(found(train), 0.0, 0.0, seed=0)
    assert splits.train is train
    assert [name for name, _ in splits] == ["train"]


def test_the_source_s_own_splits_are_kept() -> None:
    train, val, test = numbered(9, 9), numbered(2, 2), numbered(3, 3)
    splits = complete(found(train, val, test), 0.5, 0.5, seed=0)
    assert (splits.train, splits.val, splits.test) == (train, val, test)


def test_own_validation_images_are_left_out_with_a_warning_when_none_are_wanted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        splits = complete(found(numbered(9, 9), numbered(2, 2), numbered(3, 3)), 0.0, 0.1, seed=0)
    assert splits.val is None
    assert "ignoring the 4 validation images of letters" in caplog.text

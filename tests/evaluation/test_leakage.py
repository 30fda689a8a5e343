from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cifar_ray.data.sources import load_digits
from cifar_ray.evaluation.measures.leakage import find_duplicates

Images = npt.NDArray[np.uint8]


def scenes(count: int, seed: int, size_px: int = 32) -> Images:
    """Pictures of blobs: smooth as photos are, and each its own."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size_px, :size_px] / size_px
    pictures = np.full((count, size_px, size_px, 3), 90.0)
    for number in range(count):
        for _ in range(12):
            y, x = rng.uniform(0, 1, 2)
            colour = rng.uniform(-90, 90) + rng.uniform(-20, 20, 3)
            pictures[number] += np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / rng.uniform(0.04, 0.2) ** 2)[..., None] * colour
    return pictures.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def learnt() -> Images:
    return scenes(60, seed=0)


def test_pictures_of_other_things_are_no_duplicates(learnt: Images) -> None:
    assert find_duplicates(scenes(60, seed=1), learnt) == []


@pytest.mark.parametrize("change", ["identical", "moved", "mirrored", "darker", "noisy", "grey"])
def test_a_learnt_picture_is_found_again_however_it_was_changed(learnt: Images, change: str) -> None:
    asked = scenes(10, seed=2)
    original = learnt[7].astype(np.float64)
    changed = {
        "identical": original,
        "moved": np.roll(original, (2, -1), axis=(0, 1)),
        "mirrored": original[:, ::-1],
        "darker": original * 0.5 + 10,
        "noisy": original + np.random.default_rng(0).normal(0, 5, original.shape),
        "grey": np.broadcast_to(original.mean(axis=2, keepdims=True), original.shape),
    }[change]
    asked[4] = changed.clip(0, 255).astype(np.uint8)
    (found,) = find_duplicates(asked, learnt)
    assert (found.query, found.reference) == (4, 7)
    assert found.similarity > 0.75
    assert found.identical == (change == "identical")
    assert found.mirrored == (change == "mirrored")


def test_embeddings_bring_in_pairs_whose_small_pictures_differ(learnt: Images) -> None:
    asked = np.roll(learnt[7:8], (4, 4), axis=(1, 2))
    blurred = asked.reshape(1, 8, 4, 8, 4, 3).mean((2, 4)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    crowd = np.concatenate([learnt, np.repeat(blurred, 9, axis=0)])
    near = np.zeros((len(crowd), 2), np.float32)
    near[:, 0], near[7] = 1, (0, 1)
    assert 7 not in [found.reference for found in find_duplicates(asked, crowd)]
    assert 7 in [found.reference for found in find_duplicates(asked, crowd, (near[7:8], near))]


def test_within_a_split_each_pair_is_named_once_and_no_image_is_its_own_duplicate(learnt: Images) -> None:
    crowd = learnt.copy()
    crowd[30] = crowd[3][:, ::-1]
    (found,) = find_duplicates(crowd)
    assert (found.query, found.reference, found.mirrored) == (30, 3, True)


def test_identical_pictures_are_found_even_where_there_is_nothing_to_see() -> None:
    flat = np.full((3, 8, 8, 3), 7, np.uint8)
    assert find_duplicates(flat[:1]) == []
    assert [(found.query, found.reference, found.identical) for found in find_duplicates(flat)] == [(1, 0, True), (2, 0, True)]
    assert [found.identical for found in find_duplicates(flat[:2], flat[2:])] == [True, True]


def test_large_pictures_are_compared_too() -> None:
    large = scenes(4, seed=3, size_px=96)
    (found,) = find_duplicates(large[2:3, :, ::-1], large)
    assert (found.reference, found.mirrored) == (2, True)


@pytest.mark.parametrize("size_px", [8, 16])
def test_digits_are_no_duplicates_of_each_other_though_they_look_alike(size_px: int) -> None:
    digits = load_digits(size_px).train.images[:400]
    assert len(find_duplicates(digits)) < 0.03 * len(digits)

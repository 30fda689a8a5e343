"""Data sets are joined and relabelled without losing what their images have."""

from __future__ import annotations

import numpy as np

from cifar_ray.data import DatasetSplits, ImageDataset
from cifar_ray.data.dataset import join
from cifar_ray.evaluation.selection import pick, relabel

NAMES = ("ant", "bee")


def made(count: int, **more: np.ndarray) -> ImageDataset:
    return ImageDataset(np.zeros((count, 8, 8, 3), np.uint8), np.arange(count) % 2, NAMES, **more)


def test_what_some_parts_lack_is_filled_in() -> None:
    first = made(3, bursts=np.array([0, 0, 5]), files=np.array([b"a", b"b", b"c"]))
    second = made(2, weights=np.array([2, 3], np.float32))
    joined = join([first, second, first])
    assert joined.bursts is not None
    assert joined.weights is not None
    assert joined.bursts.tolist() == [0, 0, 5, 6, 7, 8, 8, 13]
    assert joined.weights.tolist() == [1, 1, 1, 2, 3, 1, 1, 1]
    assert joined.files is None
    plain = join([made(2), made(1)])
    assert (plain.bursts, plain.weights, plain.files, len(plain)) == (None, None, None, 3)


def test_all_splits_relabelled_for_a_model_keep_bursts_weights_and_files() -> None:
    parts = {
        "bursts": np.array([0, 0]),
        "weights": np.array([1, 2], np.float32),
        "files": np.array([b"a", b"b"]),
    }
    found = relabel(pick(DatasetSplits("pets", made(2, **parts), made(2, **parts), None), "all"), ("bee", "cat", "ant"), "pets")
    assert found.labels.tolist() == [2, 0, 2, 0]
    assert found.class_names == ("bee", "cat", "ant")
    assert found.bursts is not None
    assert found.weights is not None
    assert found.files is not None
    assert (found.bursts.tolist(), found.weights.tolist(), found.files.tolist()) == ([0, 0, 1, 1], [1, 2, 1, 2], [b"a", b"b", b"a", b"b"])

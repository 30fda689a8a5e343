from __future__ import annotations

import numpy as np
import pytest

from cifar_ray.data import ImageDataset, channel_mean_std, statistics
from cifar_ray.errors import DataError


def dataset(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> ImageDataset:
    return ImageDataset(images, np.zeros(len(images), np.int64), ("a", "b"))


def test_mean_and_std_equal_numpy_in_float64_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK_BYTES", 10_000)
    images = np.random.default_rng(0).integers(0, 256, (101, 16, 16, 3), np.uint8)
    mean, std = channel_mean_std(dataset(images))
    exact = images.reshape(-1, 3).astype(np.float64) / 255
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(std, exact.std(0), rtol=1e-12)


def test_many_bright_pixels_do_not_round() -> None:
    images = np.full((3000, 32, 32, 3), 255, np.uint8)
    images[:, 0, 0] = 254
    mean, std = channel_mean_std(dataset(images))
    assert mean[0] == pytest.approx(1 - 1 / 255 / 1024, abs=1e-15)
    assert std[0] == pytest.approx(np.sqrt((1 / 1024) * (1 - 1 / 1024)) / 255, rel=1e-12)


def test_a_constant_channel_has_std_1() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[0, ..., 0] = 255
    mean, std = channel_mean_std(dataset(images))
    assert mean == (0.25, 0.0, 0.0)
    assert std[1:] == (1.0, 1.0)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="at least one image"):
        channel_mean_std(dataset(np.zeros((0, 8, 8, 3), np.uint8)))

from __future__ import annotations

import numpy as np
import pytest

from cifar_ray.evaluation.measures.corruptions import CORRUPTIONS, LEVELS, corrupt


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (12, 5, 5, 3))
    return np.kron(coarse, np.ones((1, 8, 8, 1)))[:, 4:36, 4:36].astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_severity_changes_images_more_than_the_mildest_and_the_same_seed_gives_the_same_pixels(photos: np.ndarray, kind: str) -> None:
    corrupted = [corrupt(photos, kind, level, seed=1) for level in range(1, LEVELS + 1)]
    change = [np.abs(one.astype(int) - photos).mean() for one in corrupted]
    assert all(one.dtype == np.uint8 and one.shape == photos.shape for one in corrupted)
    assert change[0] > 0
    assert change[-1] > change[0]
    np.testing.assert_array_equal(corrupted[2], corrupt(photos, kind, 3, seed=1))


def test_noise_has_the_published_strength() -> None:
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    noisy = corrupt(grey, "gaussian noise", 5, seed=0).astype(float) / 255
    assert noisy.std() == pytest.approx(0.10, rel=0.02)
    salted = corrupt(grey, "impulse noise", 5, seed=0)
    assert np.isin(salted, (0, 255)).mean() == pytest.approx(0.07, rel=0.05)


def test_brightness_contrast_and_saturation_are_those_of_the_colour_space(photos: np.ndarray) -> None:
    brighter = corrupt(photos, "brightness", 5, seed=0).astype(int)
    np.testing.assert_allclose(brighter.max(3), np.minimum(255, photos.max(3) + 76.5), atol=1)
    flat = corrupt(photos, "contrast", 5, seed=0).astype(float)
    np.testing.assert_allclose(flat.std((1, 2)), 0.15 * photos.std((1, 2)), atol=0.5)
    pale = corrupt(photos, "saturation", 2, seed=0).astype(int)
    np.testing.assert_allclose(pale.max(3), photos.max(3), atol=1)
    np.testing.assert_allclose(pale.max(3) - pale.min(3), 0.1 * (photos.max(3).astype(int) - photos.min(3)), atol=1.5)


def test_blurs_leave_flat_pictures_alone_and_work_on_larger_ones() -> None:
    flat = np.full((2, 64, 64, 3), 77, np.uint8)
    for kind in ("gaussian blur", "motion blur", "zoom blur", "pixelation"):
        assert np.abs(corrupt(flat, kind, 5, seed=0).astype(int) - 77).max() <= 1

"""Shared fixtures. The one local Ray cluster is started when the first test needs it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_ray.data.dataset import DatasetSplits, ImageDataset


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither read nor fill the user's cache; Ray's workers inherit the setting."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CIFAR_RAY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def ray_cluster(own_cache: Path) -> Iterator[None]:
    """A cluster of two CPUs on this machine, shared by all tests marked `ray`."""
    import ray

    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # as for a cluster that training starts itself
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def make_stripes(count: int, size_px: int = 16, seed: int = 0) -> ImageDataset:
    """Three classes that a network can tell apart: horizontal, vertical and no stripes, on noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 120, (count, size_px, size_px, 3))
    images[labels == 0, ::4] += 100
    images[labels == 1, :, ::4] += 100
    return ImageDataset(images.astype(np.uint8), labels.astype(np.int64), ("horizontal", "vertical", "plain"))


@pytest.fixture(scope="session")
def stripes() -> DatasetSplits:
    """240 training, 60 validation and 60 test images of 16 px in three classes."""
    return DatasetSplits("stripes", make_stripes(240, seed=0), make_stripes(60, seed=1), make_stripes(60, seed=2))


@pytest.fixture(scope="session")
def narrow() -> dict[str, dict[str, Any]]:
    """By architecture, arguments that make the network small; those that have none are small, or of one size only."""
    return {
        "airnet": {"widths": (16, 24, 24)},
        "airnet96": {"widths": (16, 24, 24)},
        "cnn3": {"widths": ((8,), (8,), (16,))},
        "cnn6": {"widths": ((8, 16), (16, 16), (16, 16))},
        "resnet50": {"least_px": 32},
        "resnet9": {"widths": (8, 16, 16, 24)},
        "vgg3": {"widths": ((8, 8), (8, 8), (16, 16))},
        "wide_resnet28_10": {"widen": 1},
    }

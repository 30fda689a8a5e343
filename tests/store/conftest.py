from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_ray.store import Architecture, Manifest, ModelStore

Weights = dict[str, torch.Tensor]


@pytest.fixture
def weights() -> Weights:
    return {"conv.weight": torch.randn(4, 3, 2, 2), "bn.num_batches_tracked": torch.tensor(7)}


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    def make(**changes: Any) -> Manifest:
        values = {
            "architecture": Architecture(name="small_cnn", arguments={"num_classes": 2}),
            "class_names": ("cat", "dog"),
            "image_size_px": 32,
            "channel_mean": (0.5, 0.5, 0.5),
            "channel_std": (0.25, 0.25, 0.25),
            "resize_policy": "pad",
            "metrics": {"test_accuracy": 0.9},
            "dataset_name": "pets",
            "dataset_fingerprint": "d" * 64,
            "test_fingerprint": "e" * 64,
            "train_config": {"optimizer": {"betas": (0.9, 0.999)}},
            "created_at": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        }
        return Manifest.model_validate(values | changes)

    return make


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path))


@pytest.fixture
def three(store: ModelStore, manifest: Manifest, weights: Weights) -> ModelStore:
    """A store with `pets` in versions 1, 2 and 3."""
    for _ in range(3):
        store.save("pets", manifest, weights)
    return store

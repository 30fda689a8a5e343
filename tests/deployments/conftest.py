from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_ray.models import create_model
from cifar_ray.store import Architecture, Bundle, Manifest, ModelStore

SaveTiny = Callable[..., Bundle]


@pytest.fixture(scope="session")
def save_tiny() -> SaveTiny:
    """Keeps a tiny network with three classes in a store."""

    def save(storage: str, name: str = "pets", **changes: Any) -> Bundle:
        arguments = {"num_classes": 3, "image_size": 16}
        torch.manual_seed(0)
        values = {
            "architecture": Architecture(name="small_cnn", arguments=arguments),
            "class_names": ("cat", "dog", "eel"),
            "image_size_px": 16,
            "channel_mean": (0.5, 0.5, 0.5),
            "channel_std": (0.25, 0.25, 0.25),
            "resize_policy": "pad",
            "dataset_name": name,
            "dataset_fingerprint": "d" * 64,
            "test_fingerprint": "e" * 64,
            "created_at": datetime(2025, 1, 2, tzinfo=UTC),
        }
        return ModelStore(storage).save(
            name, Manifest.model_validate(values | changes), create_model("small_cnn", **arguments).state_dict()
        )

    return save


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A JPEG, 40 px wide and 30 px high."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()

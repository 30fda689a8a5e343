from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from cifar_ray.inference.exporting import answers
from cifar_ray.inference.exporting import export as exporting
from cifar_ray.models import create_model
from cifar_ray.store import Architecture, Bundle, Manifest

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def make_bundle(narrow: dict[str, dict[str, Any]]) -> MakeBundle:
    def make(architecture: str = "small_cnn", weights: dict[str, torch.Tensor] | None = None, **changes: Any) -> Bundle:
        arguments = changes.pop("arguments", {"num_classes": 3, "image_size": 16} | narrow.get(architecture, {}))
        torch.manual_seed(0)
        values = {
            "architecture": Architecture(name=architecture, arguments=arguments),
            "class_names": ("cat", "dog", "eel"),
            "image_size_px": 16,
            "channel_mean": (0.4, 0.5, 0.6),
            "channel_std": (0.2, 0.25, 0.3),
            "resize_policy": "pad",
            "dataset_name": "pets",
            "dataset_fingerprint": "d" * 64,
            "test_fingerprint": "e" * 64,
            "created_at": datetime(2025, 1, 2, tzinfo=UTC),
        }
        manifest = Manifest.model_validate(values | changes)
        state = create_model(architecture, **arguments).state_dict() if weights is None else weights
        return Bundle(manifest, state, "pets", 7)

    return make


@pytest.fixture
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


class Corner(nn.Module):
    """The upper left corner of the pictures: nothing changes where they have the size of the network."""

    def __init__(self, size_px: int, policy: str) -> None:
        super().__init__()
        self.size_px = size_px

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = torch.arange(self.size_px)
        return images.index_select(1, side).index_select(2, side)


@pytest.fixture
def without_resizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of an export's time is for resizing, which does not depend on the network."""
    monkeypatch.setattr(answers, "Square", Corner)
    monkeypatch.setattr(exporting, "_CHECKED_SIDES", ((1, 1),))

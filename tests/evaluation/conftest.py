from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cifar_ray.data import DatasetSplits
from cifar_ray.models import create_model
from cifar_ray.store import Architecture, Bundle, Manifest, ModelStore

SaveModel = Callable[..., Bundle]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, stripes: DatasetSplits) -> Path:
    """Stripes as a folder of PNGs; the first test picture of each class is a training picture, mirrored."""
    root = tmp_path_factory.mktemp("data") / "stripes"
    assert stripes.test is not None
    for split, part, count in (("train", stripes.train, 240), ("test", stripes.test, 30)):
        for row in range(count):
            folder = root / split / part.class_names[part.labels[row]]
            folder.mkdir(parents=True, exist_ok=True)
            learnt = split == "test" and row < 3
            pixels = stripes.train.images[30 + row, :, ::-1] if learnt else part.images[row]
            Image.fromarray(pixels).resize((16, 16) if row % 2 else (32, 32), Image.Resampling.NEAREST).save(folder / f"{row:03}.png")
    return root


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, SaveModel]:
    """A storage, and a function that keeps a small network in it, with weights that follow from a seed."""
    storage = tmp_path_factory.mktemp("storage")

    def save(name: str, seed: int = 0, **changes: Any) -> Bundle:
        arguments = {"num_classes": 3, "image_size": 16}
        torch.manual_seed(seed)
        values = {
            "architecture": Architecture(name="small_cnn", arguments=arguments),
            "class_names": ("horizontal", "plain", "vertical"),
            "image_size_px": 16,
            "channel_mean": (0.3, 0.3, 0.3),
            "channel_std": (0.2, 0.2, 0.2),
            "resize_policy": "pad",
            "dataset_name": "stripes",
            "dataset_fingerprint": "d" * 64,
            "train_config": {"dataset": "folder", "data_dir": str(pictures), "val_fraction": 0.1, "seed": 3},
            "created_at": datetime(2025, 1, 2, tzinfo=UTC),
        }
        weights = create_model("small_cnn", **arguments).state_dict()
        return ModelStore(str(storage)).save(name, Manifest.model_validate(values | changes), weights)

    return storage, save

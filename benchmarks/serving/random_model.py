"""A model to serve, with random weights, which cost the same arithmetic as trained ones."""

from __future__ import annotations

from datetime import UTC, datetime

import torch

from cifar_ray.models import create_model
from cifar_ray.store import Architecture, Manifest, ModelStore

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def save_random_model(architecture: str, storage: str, channel_std: float = 0.25) -> None:
    """Save a bundle with random weights as the next version of `cifar10`; with a tiny `channel_std`, bright pictures overflow."""
    arguments = {"num_classes": len(CLASSES), "image_size": 32}
    torch.manual_seed(0)
    manifest = Manifest(
        architecture=Architecture(name=architecture, arguments=arguments),
        class_names=CLASSES,
        image_size_px=32,
        channel_mean=(0.49, 0.48, 0.45),
        channel_std=(channel_std,) * 3,
        resize_policy="pad",
        dataset_name="random",
        dataset_fingerprint="0" * 64,
        created_at=datetime.now(UTC),
    )
    ModelStore(storage).save("cifar10", manifest, create_model(architecture, **arguments).state_dict())

"""Our pretrained weights as a file that timm reads, so that all contenders start from the same network."""

from __future__ import annotations

from pathlib import Path

MODEL = "tf_efficientnet_lite0"


def export_weights(folder: Path) -> Path:
    """Write the weights with timm's names, and return the file."""
    import torch

    from cifar_ray.config import PRETRAINED_MODEL, PRETRAINED_PACKAGE
    from cifar_ray.models import create_model
    from cifar_ray.training.weights.pretrained import load_pretrained

    network = create_model(PRETRAINED_MODEL, 1000, 224)
    load_pretrained(network, PRETRAINED_MODEL, f"package:{PRETRAINED_PACKAGE}")
    path = folder / f"{MODEL}.pth"
    torch.save(network.state_dict(), path)
    return path

"""ImageNet weights from torchvision."""

from __future__ import annotations

import http.client
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_ray.data.sources import impatient_network
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.models.stages import head_name

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of the channels in the training of the weights


def imagenet_weights(architecture: str) -> dict[str, Tensor]:
    """Load the weights; download them to torch's cache folder on first use.

    Raises:
        ConfigError: if the architecture has no ImageNet weights.
        DataError: if they cannot be downloaded, or the file is damaged.
    """
    if architecture != "resnet50":
        raise ConfigError(f"pretrained: no ImageNet weights for {architecture}. Available: resnet50. Pass --no-pretrained")
    from torchvision.models import ResNet50_Weights

    source = ResNet50_Weights.IMAGENET1K_V2
    try:
        with impatient_network():
            return dict(source.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise DataError(
            f"pretrained: cannot load the ImageNet weights {source.url} ({reason}); put this file into {folder}, or pass --no-pretrained"
        ) from None


def load_pretrained(model: nn.Module, architecture: str) -> None:
    """Load ImageNet weights into a fresh network, except its head, which is for other classes.

    Raises:
        ConfigError, DataError: see `imagenet_weights`.
    """
    head = f"{head_name(model)}."
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(head)}
    model.load_state_dict({name: tensor for name, tensor in imagenet_weights(architecture).items() if not name.startswith(head)} | own)

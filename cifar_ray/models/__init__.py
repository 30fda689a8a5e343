"""Architectures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cifar_ray.errors import ConfigError
from cifar_ray.models.airnet import AirNet
from cifar_ray.models.ensemble import Ensemble
from cifar_ray.models.resnet import resnet18
from cifar_ray.models.small_cnn import SmallCNN

_ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "airnet": AirNet,
    "resnet18": resnet18,
    "small_cnn": SmallCNN,
}


@runtime_checkable
class DataInitialized(Protocol):
    """A network whose stem is set from training images, and may stop learning early."""

    def initialize_from(self, images: Tensor) -> None:
        """Sets the stem from normalised images, float `[N, 3, H, W]`."""

    def freeze_stem(self) -> None:
        """Stops training the stem's weights."""


def list_models() -> list[str]:
    """Names of what can be trained, sorted."""
    return sorted(_ARCHITECTURES)


def create_model(name: str, num_classes: int, image_size: int, **arguments: Any) -> nn.Module:
    """Builds a network with fresh weights, drawn from torch's global generator.

    Args:
        name: one of `list_models()`, or `ensemble`, whose `members` are more of the kind.
        num_classes: width of the logits, at least 2.
        image_size: height and width of the images, px.
        **arguments: further arguments of the architecture, e.g. `widths` of `airnet`.

    Returns:
        A module from normalised images, float `[N, 3, H, W]`, to logits, `[N, num_classes]`.

    Raises:
        ConfigError: for an unknown name, or an image too small for the architecture.
    """
    if name == "ensemble" and "members" in arguments:
        return _create_ensemble(**arguments)
    if name not in _ARCHITECTURES:
        raise ConfigError(f"model: unknown architecture {name!r}; there are {', '.join(list_models())}")
    if num_classes < 2:
        raise ConfigError(f"model: {num_classes} class is no choice; at least 2 are needed")
    return _ARCHITECTURES[name](num_classes=num_classes, image_size=image_size, **arguments)


def _create_ensemble(members: Sequence[Mapping[str, Any]], temperatures: Sequence[float]) -> Ensemble:
    networks = [create_model(member["name"], **member["arguments"]) for member in members]
    return Ensemble(networks, torch.zeros(len(networks), 2, 3), temperatures)


def count_parameters(model: nn.Module) -> int:
    """Number of weights that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

"""Network architectures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cifar_ray.errors import ConfigError
from cifar_ray.models.airnet import AirNet
from cifar_ray.models.ensemble import Ensemble
from cifar_ray.models.plain_cnn import PlainCNN
from cifar_ray.models.resnet import resnet18, resnet50
from cifar_ray.models.resnet9 import ResNet9
from cifar_ray.models.small_cnn import SmallCNN
from cifar_ray.models.timm_networks import PREFIX, check_name, create_timm
from cifar_ray.models.views import Views
from cifar_ray.models.wide_resnet import WideResNet

_ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "airnet": AirNet,
    "airnet96": partial(AirNet, widths=(128, 384, 512), convolutions=3),
    "cnn3": partial(PlainCNN, widths=((64,), (128,), (256,)), dropout=(0.0, 0.0, 0.6)),
    "cnn6": partial(PlainCNN, widths=((32, 64), (128, 128), (256, 256)), dropout=(0.0, 0.1, 0.3)),
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet9": ResNet9,
    "small_cnn": SmallCNN,
    "vgg3": partial(PlainCNN, widths=((32, 32), (64, 64), (128, 128)), dropout=(0.2, 0.3, 0.4)),
    "wide_resnet28_10": WideResNet,
}


@runtime_checkable
class DataInitialized(Protocol):
    """A network whose stem is initialised from training images and may be frozen early."""

    def initialize_from(self, images: Tensor) -> None:
        """Initialise the stem from normalised images, float `[N, 3, H, W]`."""

    def freeze_stem(self) -> None:
        """Freeze the weights of the stem."""


def list_models() -> list[str]:
    """Names of the architectures for training, sorted."""
    return sorted(_ARCHITECTURES)


def check_model(name: str) -> None:
    """Check the name of an architecture.

    Raises:
        ConfigError: if it is unknown.
    """
    if name.startswith(PREFIX):
        check_name(name)
    elif name not in _ARCHITECTURES:
        raise ConfigError(f"model: unknown architecture {name!r}. Available: {', '.join(list_models())}, and timm's as timm:NAME")


def create_model(name: str, num_classes: int, image_size: int, views: int = 1, mirror_views: bool = True, **arguments: Any) -> nn.Module:
    """Create a network with fresh weights from torch's global generator.

    Args:
        name: one of `list_models()`, `timm:NAME`, or `ensemble` with the arguments `members` and `temperatures`.
        num_classes: width of the logits, at least 2.
        image_size: height and width of the images, px.
        views: number of views of each image whose logits are averaged.
        mirror_views: whether every second view is mirrored.
        **arguments: other arguments of the architecture, for example `widths` of `airnet`.

    Returns:
        A module from normalised images, float `[N, 3, H, W]`, to logits, `[N, num_classes]`.

    Raises:
        ConfigError: for an unknown name, fewer than 2 classes, a number of views out of range, or an image size that the architecture
            does not support.
    """
    if name == "ensemble" and "members" in arguments:
        return _create_ensemble(**arguments)
    check_model(name)
    if num_classes < 2:
        raise ConfigError(f"model: expected at least 2 classes, got {num_classes}")
    create = partial(create_timm, name) if name.startswith(PREFIX) else _ARCHITECTURES[name]
    network = create(num_classes=num_classes, image_size=image_size, **arguments)
    return Views(network, views, mirror_views) if views > 1 else network


def _create_ensemble(
    members: Sequence[Mapping[str, Any]], temperatures: Sequence[float], scales: Sequence[Sequence[Sequence[float]]] | None = None
) -> Ensemble:
    networks = [create_model(member["name"], **member["arguments"]) for member in members]
    return Ensemble(networks, torch.zeros(len(networks), 2, 3), temperatures, scales)


def count_flops(model: nn.Module, image_size: int) -> int:
    """Count the FLOPs of a forward pass for one image with torch's counter; a multiply-add counts as two FLOPs.

    Args:
        model: network in evaluation mode; on the device `meta`, counting needs neither time nor memory.
        image_size: side of the image, px.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device))
    return int(counter.get_total_flops())


def count_parameters(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

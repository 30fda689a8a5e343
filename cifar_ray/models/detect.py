"""Detect the architecture of a state dict from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from cifar_ray.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]

_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.")  # of DataParallel, torch.compile, Lightning and custom wrappers
# pytorch-cifar (kuangliu), the origin of most CIFAR ResNets, has other names for two parts of the network
_OTHER_NAMES = ((re.compile(r"^linear\."), "fc."), (re.compile(r"\.shortcut\."), ".downsample."))
_SMALL_STEM_PX, _LARGE_STEM_PX = 32, 224


def canonical(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the names of this project's architectures: remove prefixes of wrappers, and replace known other names."""
    names = list(weights)
    while prefix := next((prefix for prefix in _WRAPPERS if names and all(name.startswith(prefix) for name in names)), ""):
        names = [name.removeprefix(prefix) for name in names]
    if "linear.weight" in names:
        for pattern, ours in _OTHER_NAMES:
            names = [pattern.sub(ours, name) for name in names]
    return dict(zip(names, weights.values(), strict=True))


def detect(weights: Mapping[str, Tensor], image_size_px: int | None = None) -> tuple[str, dict[str, Any]]:
    """Detect the architecture of a state dict.

    Args:
        weights: a state dict with `canonical` names.
        image_size_px: side of the training images. The shapes only show the kind of stem, so `None` assumes 32 px, or 224 px for a
            ResNet with the large stem.

    Returns:
        Name and keyword arguments for `models.create_model`.

    Raises:
        ConfigError: if the architecture is unknown.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, find in _DETECTORS.items():
        arguments = find(shapes)
        if arguments is not None:
            return name, arguments | ({"image_size": image_size_px} if image_size_px else {})
    found = ", ".join(list(shapes)[:4])
    raise ConfigError(f"unknown architecture (tensors {found}, …). Supported: {', '.join(_DETECTORS)}")


def _airnet(shapes: Shapes, residual: bool = False) -> dict[str, Any] | None:
    keys = ("whitening.weight", *(f"groups.{number}.conv1.weight" for number in range(3)), "head.weight")
    if not all(key in shapes for key in keys) or residual != ("groups.0.conv3.weight" in shapes):
        return None
    return {"num_classes": shapes[keys[-1]][0], "image_size": _SMALL_STEM_PX, "widths": tuple(shapes[key][0] for key in keys[1:-1])}


def _small_cnn(shapes: Shapes) -> dict[str, Any] | None:
    keys = (*(f"convolutions.{number}.weight" for number in range(3)), "head.weight")
    if not all(key in shapes for key in keys):
        return None
    return {"num_classes": shapes[keys[-1]][0], "image_size": _SMALL_STEM_PX, "widths": tuple(shapes[key][0] for key in keys[:-1])}


def _plain(shapes: Shapes, is_ours: Callable[[Sequence[tuple[int, ...]]], bool]) -> dict[str, Any] | None:
    """Detect a `PlainCNN`; dropout has no weights, so only the widths distinguish the networks."""
    widths: list[tuple[int, ...]] = []
    while f"blocks.{len(widths)}.convolutions.0.weight" in shapes:
        layers = (shapes.get(f"blocks.{len(widths)}.convolutions.{number}.weight") for number in range(2))
        widths.append(tuple(shape[0] for shape in layers if shape))
    if len(widths) != 3 or "head.weight" not in shapes or not is_ours(widths):
        return None
    return {"num_classes": shapes["head.weight"][0], "image_size": _SMALL_STEM_PX, "widths": tuple(widths)}


def _resnet9(shapes: Shapes) -> dict[str, Any] | None:
    keys = (*(f"blocks.{number}.conv.weight" for number in (0, 1, 3, 4)), "head.weight")
    if not all(key in shapes for key in keys):
        return None
    return {"num_classes": shapes[keys[-1]][0], "image_size": _SMALL_STEM_PX, "widths": tuple(shapes[key][0] for key in keys[:-1])}


def _wide_resnet28(shapes: Shapes) -> dict[str, Any] | None:
    if "stem.weight" not in shapes or "blocks.11.conv2.weight" not in shapes or "blocks.12.conv2.weight" in shapes:
        return None
    return {"num_classes": shapes["head.weight"][0], "image_size": _SMALL_STEM_PX, "widen": shapes["blocks.11.conv2.weight"][0] // 64}


def _resnet18(shapes: Shapes) -> dict[str, Any] | None:
    stem, head = shapes.get("conv1.weight"), shapes.get("fc.weight")
    if stem is None or head is None or "layer1.1.conv2.weight" not in shapes or "layer1.2.conv1.weight" in shapes:
        return None
    return {"num_classes": head[0], "image_size": _SMALL_STEM_PX if stem[-1] == 3 else _LARGE_STEM_PX}


def _resnet50(shapes: Shapes) -> dict[str, Any] | None:
    deep = "layer3.5.conv3.weight" in shapes and "layer3.6.conv3.weight" not in shapes
    if not deep or shapes.get("conv1.weight") != (64, 3, 7, 7) or "fc.weight" not in shapes:
        return None
    return {"num_classes": shapes["fc.weight"][0], "image_size": _LARGE_STEM_PX}


_DETECTORS: dict[str, Callable[[Shapes], dict[str, Any] | None]] = {
    "airnet": _airnet,
    "airnet96": partial(_airnet, residual=True),
    "cnn3": partial(_plain, is_ours=lambda widths: all(len(block) == 1 for block in widths)),
    "cnn6": partial(_plain, is_ours=lambda widths: all(len(block) == 2 for block in widths) and widths[0][0] < widths[0][1]),
    "resnet18": _resnet18,
    "resnet50": _resnet50,
    "resnet9": _resnet9,
    "small_cnn": _small_cnn,
    "vgg3": partial(_plain, is_ours=lambda widths: all(len(block) == 2 for block in widths) and widths[0][0] == widths[0][1]),
    "wide_resnet28_10": _wide_resnet28,
}

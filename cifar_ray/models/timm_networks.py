"""Networks of timm, the library of pretrained image networks: `timm:NAME` or `timm:NAME.TAG`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifar_ray.errors import ConfigError

PREFIX = "timm:"


def create_timm(name: str, num_classes: int, image_size: int, **arguments: Any) -> nn.Module:
    """Create a network of timm with fresh weights from torch's global generator.

    Args:
        name: `timm:NAME`, with or without the tag of pretrained weights.
        num_classes: width of the logits.
        image_size: height and width of the images, px; networks with position embeddings are built for it.
        **arguments: other keyword arguments of `timm.create_model`.

    Raises:
        ConfigError: if timm has no such network, or it cannot be created for this size, or it does not end in one linear layer.
    """
    import timm  # the import takes seconds, and other networks do not need it

    known = check_name(name)
    if pretrained_config(name).fixed_input_size:
        arguments = {"img_size": image_size} | arguments
    try:
        model: nn.Module = timm.create_model(known, pretrained=False, num_classes=num_classes, **arguments)
        features = _head_input(model, image_size)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        usual = pretrained_config(name).input_size[-1]
        raise ConfigError(f"model: {name} cannot be created for {image_size} px: {reason}; its usual size is {usual} px") from None
    if features is None or features.ndim != 2:
        raise ConfigError(f"model: {name} does not end in one linear layer, which fine-tuning and serving need; choose another network")
    return model


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def _head_input(model: nn.Module, image_size: int) -> Tensor | None:
    """Run one image of zeros, because some networks reject an image size only in the forward pass.

    Returns:
        The input of the linear head; `None` if there is no such head, or it does not run exactly once.
    """
    head = timm_head_name(model)
    if not head or not isinstance(model.get_submodule(head), nn.Linear):
        return None
    seen: list[Tensor] = []
    hook = model.get_submodule(head).register_forward_pre_hook(lambda _head, inputs: seen.append(inputs[0]))
    trained = model.training
    try:
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device))
    finally:
        hook.remove()
        model.train(trained)
    return seen[0] if len(seen) == 1 else None


def check_name(name: str) -> str:
    """Name of a network as timm knows it, without the prefix.

    Raises:
        ConfigError: if timm has no such network, or no such weights of it; the message suggests similar ones.
    """
    import timm

    full = name.removeprefix(PREFIX)
    plain, _, tag = full.partition(".")
    if not timm.is_model(plain):
        close = difflib.get_close_matches(plain, timm.list_models(), n=3)
        advice = f"did you mean {', '.join(PREFIX + one for one in close)}?" if close else "--list-models timm:PATTERN shows them"
        raise ConfigError(f"model: timm has no network {plain!r}; {advice}")
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        raise ConfigError(f"model: {PREFIX}{plain} has no weights {tag!r}. Available: {', '.join(tags) or 'none'}")
    return full


def pretrained_config(name: str) -> Any:
    """Timm's `PretrainedCfg` of a network: mean, std, input size, licence and address of its weights.

    Raises:
        ConfigError: see `check_name`.
    """
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(check_name(name))


def list_timm(pattern: str) -> list[str]:
    """Names of timm's networks that match a pattern such as `timm:convnext*`, with the prefix."""
    import timm

    wanted = pattern.removeprefix(PREFIX) or "*"
    return [PREFIX + one for one in timm.list_models(wanted if "*" in wanted else f"*{wanted}*")]


def timm_head_name(model: nn.Module) -> str:
    """Name of the layer that computes the logits of a network of timm; empty for other networks, and for several such layers."""
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("classifier") if isinstance(config, dict) else None
    return name if isinstance(name, str) else ""


def adapt_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights as timm does: position embeddings from another image size, and names from the original code.

    Args:
        model: a network of timm, whose module may have a function for this; without such a function, nothing is converted.
        weights: tensors by name.
    """
    convert = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if convert is None or not timm_head_name(model):
        return dict(weights)
    try:
        return dict(convert(dict(weights), model))
    except Exception:  # the weights belong to another network; the caller reports this
        return dict(weights)

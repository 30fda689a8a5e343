"""Stages of a network, in the order of the forward pass; fine-tuning freezes stages and scales their learning rates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from cifar_ray.errors import ConfigError
from cifar_ray.models.timm_networks import timm_head_name
from cifar_ray.models.views import Views

# torch's and timm's classes, for example BatchNormAct2d and EvoNorm2dB0
_NORM = re.compile(r"(Batch|Evo|FilterResponse|FrozenBatch|Group|Layer|Rms|RMS|Simple|SplitBatch|SyncBatch)Norm")


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a network that has weights.

    Attributes:
        name: name of the first module.
        modules: a convolution or block, and the norms that follow it.
        own: weights of the network itself, such as position embeddings; they belong to the first stage.
    """

    name: str
    modules: tuple[nn.Module, ...]
    own: tuple[nn.Parameter, ...] = ()

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights of the stage."""
        yield from self.own
        for module in self.modules:
            yield from module.parameters()


def stages(model: nn.Module) -> list[Stage]:
    """Split a network into its stages; the last one is the head.

    Each block of a sequence is a stage of its own. A norm belongs to the stage of the preceding module.
    """
    if isinstance(model, Views):
        return [Stage(f"network.{stage.name}", stage.modules, stage.own) for stage in stages(model.network)]
    found: list[Stage] = []
    for name, module in _blocks(model, timm_head_name(model)):
        if found and _NORM.match(type(module).__name__):
            found[-1] = replace(found[-1], modules=(*found[-1].modules, module))
        elif any(True for _ in module.parameters()):
            found.append(Stage(name, (module,), () if found else tuple(model.parameters(recurse=False))))
    return found


def head_name(model: nn.Module) -> str:
    """Name of the linear layer that computes the logits.

    Raises:
        ConfigError: if the network does not end in a linear layer; an ensemble, for example, does not.
    """
    last = stages(model)[-1]
    if not isinstance(last.modules[0], nn.Linear):
        raise ConfigError(f"{type(model).__name__.lower()}: the network does not end in a linear layer; choose another model")
    return last.name


def _blocks(model: nn.Module, head: str, inside: str = "") -> Iterator[tuple[str, nn.Module]]:
    for child, module in model.named_children():
        name = f"{inside}{child}"
        if head.startswith(f"{name}."):
            yield from _blocks(module, head, f"{name}.")
        elif isinstance(module, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{inner}", block) for inner, block in module.named_children())
        else:
            yield name, module

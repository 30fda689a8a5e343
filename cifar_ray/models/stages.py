"""Stages of a network, in the order of the forward pass; fine-tuning freezes stages and scales their learning rates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from cifar_ray.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a network that has weights.

    Attributes:
        name: name of its first module.
        modules: a convolution or block, and the norms that follow it.
    """

    name: str
    modules: tuple[nn.Module, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights of the stage."""
        for module in self.modules:
            yield from module.parameters()


def stages(model: nn.Module) -> list[Stage]:
    """Split a network into its stages; the last one is the head.

    It splits sequences of blocks, and a norm belongs to the preceding module.
    """
    found: list[Stage] = []
    for name, module in _blocks(model):
        if found and isinstance(module, nn.BatchNorm2d):
            found[-1] = Stage(found[-1].name, (*found[-1].modules, module))
        elif any(True for _ in module.parameters()):
            found.append(Stage(name, (module,)))
    return found


def head_name(model: nn.Module) -> str:
    """Name of the linear layer that computes the logits.

    Raises:
        ConfigError: if the network does not end in a linear layer, such as an ensemble.
    """
    last = stages(model)[-1]
    if not isinstance(last.modules[0], nn.Linear):
        raise ConfigError(f"{type(model).__name__.lower()}: the network does not end in a linear layer; choose another model")
    return last.name


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_children():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{inner}", block) for inner, block in module.named_children())
        else:
            yield name, module

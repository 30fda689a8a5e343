"""The last activations of a network that still have positions in the image, for Grad-CAM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cifar_ray.errors import ConfigError
from cifar_ray.models.ensemble import leaves
from cifar_ray.models.stages import stages
from cifar_ray.models.timm_networks import timm_head_name
from cifar_ray.models.views import Views

_NO_MAP = "explain: the network has no layer with spatial size, which Grad-CAM needs; choose another model"


@dataclass(frozen=True, eq=False)
class LastMap:
    """The activations of one forward pass.

    Attributes:
        activations: in the layout of the network; Grad-CAM takes the gradients with respect to them.
        to_map: converts activations, or gradients of the same shape, to `[N, C, H, W]`.
    """

    activations: Tensor
    to_map: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Member:
    """A network without its views, and its recorded outputs.

    Attributes:
        network: one member of an ensemble, or the only network.
        views: the views of each image; `None` if the network gets the whole image once.
        calls: for each forward pass, the modules and their outputs.
    """

    network: nn.Module
    views: Views | None
    calls: list[list[tuple[nn.Module, Tensor]]] = field(default_factory=list)

    def record(self) -> Iterator[RemovableHandle]:
        """Register hooks that record the next forward passes; yield their handles."""
        yield self.network.register_forward_pre_hook(lambda *_: self.calls.append([]))
        for module in _recorded(self.network):
            yield module.register_forward_hook(lambda module, _inputs, output: self.calls[-1].append((module, output)))

    def last_maps(self) -> list[LastMap]:
        """The last map of each recorded forward pass.

        Raises:
            ConfigError: if the network has no layer with spatial size, or its tokens form no grid.
        """
        find = _last_timm_map if timm_head_name(self.network) else _last_map
        return [find(self.network, outputs) for outputs in self.calls]


def members(network: nn.Module) -> list[Member]:
    """The members of an ensemble, without their views; for any other network, only the network itself."""
    return [Member(leaf.network, leaf) if isinstance(leaf, Views) else Member(leaf, None) for leaf in leaves(network)]


def _recorded(network: nn.Module) -> Iterator[nn.Module]:
    if not timm_head_name(network):
        yield from (module for module in network.modules() if module is not network)
        return
    # blocks of timm's networks contain 4-D tensors that are not maps, such as queries
    yield from (module for stage in stages(network)[:-1] for module in stage.modules)
    norm = _last_block_norm(network)
    if norm is not None:
        yield norm


def _last_map(_network: nn.Module, outputs: list[tuple[nn.Module, Tensor]]) -> LastMap:
    """The last computed output with spatial size."""
    for _, output in reversed(outputs):
        if output.ndim == 4 and min(output.shape[2:]) > 1:
            return LastMap(output, lambda tensor: tensor)
    raise ConfigError(_NO_MAP)


def _last_timm_map(network: nn.Module, outputs: list[tuple[nn.Module, Tensor]]) -> LastMap:
    """The last output of a block of a convolutional network, or of a transformer whose tokens form a grid.

    If a transformer classifies by its class token, the other tokens after the last block have no influence on the logits. For such a
    network, the map is the output of the norm before the attention of the last block.
    """
    channels_last = getattr(network, "output_fmt", "") == "NHWC"
    norm = _last_block_norm(network) if getattr(network, "global_pool", "") == "token" else None
    for module, output in reversed(outputs):
        if not isinstance(output, Tensor) or output.ndim < 3:
            continue
        if output.ndim == 4:
            if min(output.shape[1:3] if channels_last else output.shape[2:]) > 1:
                return LastMap(output, (lambda tensor: tensor.movedim(3, 1)) if channels_last else (lambda tensor: tensor))
        elif norm is None or module is norm:
            return LastMap(output, _grid(network, output))
    raise ConfigError(_NO_MAP)


def _grid(network: nn.Module, tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function from tokens, `[N, L, C]`, to a map, `[N, C, H, W]`, without class token and registers, which come first."""
    first = int(getattr(network, "num_prefix_tokens", 0))
    size = getattr(getattr(network, "patch_embed", None), "grid_size", None) or getattr(getattr(network, "stem", None), "grid_size", None)
    if not size or tokens.ndim != 3 or tokens.shape[1] != first + math.prod(size) or min(size) < 2:
        raise ConfigError("explain: the tokens of this network form no grid, which Grad-CAM needs; choose another model")
    return lambda tensor: tensor[:, first:].transpose(1, 2).reshape(len(tensor), -1, *size)


def _last_block_norm(network: nn.Module) -> nn.Module | None:
    """The norm before the attention of the last block of a transformer; `None` for other networks."""
    blocks = getattr(network, "blocks", None)
    norm = getattr(blocks[-1], "norm1", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else None
    return norm if isinstance(norm, nn.Module) else None


def weighted(last: LastMap, gradients: Tensor, size: torch.Size) -> Tensor:
    """Heat, `[N, H, W]`, resized to the image (Grad-CAM: Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2)."""
    maps, slopes = last.to_map(last.activations.detach()), last.to_map(gradients)
    heat = torch.relu((slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True))
    return nn.functional.interpolate(heat, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]

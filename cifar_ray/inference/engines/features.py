"""Features of pictures: the input of a network's last linear layer, from the same forward pass as the logits."""

from __future__ import annotations

import copy
import itertools
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.errors import ConfigError
from cifar_ray.models.ensemble import leaves
from cifar_ray.models.stages import head_name


class WithFeatures(nn.Module):
    """A network that also returns its features; safe to call from several threads.

    Args:
        network: the network; it is not changed, because this module runs a copy of its modules, which shares the weights.

    Attributes:
        width: number of features.

    Raises:
        ConfigError: if the network does not end in a linear layer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = share_weights(network)
        seen = self._seen = threading.local()
        heads: list[Any] = [member.get_submodule(head_name(member)) for member in leaves(self.network)]
        self._num_heads = len(heads)
        self.width = sum(int(head.in_features) for head in heads)
        for number, head in enumerate(heads):
            head.register_forward_pre_hook(lambda _head, inputs, number=number: seen.inputs[number].append(inputs[0]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, `[N, C]`, and features, float32 `[N, D]`, of normalised images, `[N, 3, H, W]`.

        With several views, features are the mean over the views. The features of an ensemble are the concatenated features of its
        members, each scaled to length 1.
        """
        self._seen.inputs = [[] for _ in range(self._num_heads)]
        logits = self.network(images)
        members = [torch.stack(views).float().mean(0) if len(views) > 1 else views[0].float() for views in self._seen.inputs]
        del self._seen.inputs
        if len(members) == 1:
            return logits, members[0]
        return logits, torch.cat([F.normalize(features) for features in members], dim=1)


def with_features(network: nn.Module) -> nn.Module:
    """`WithFeatures` of a network; the network itself, which returns logits only, if it does not end in a linear layer."""
    try:
        return WithFeatures(network)
    except ConfigError:
        return network


def share_weights(network: nn.Module) -> nn.Module:
    """Copy the modules, but share the tensors, so that hooks do not affect other threads."""
    tensors = {id(tensor): tensor for tensor in itertools.chain(network.parameters(), network.buffers())}
    return copy.deepcopy(network, tensors)

"""Embeddings of pictures: the input of a network's last linear layer. Similar pictures have similar embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.data.batches.transforms import normalize
from cifar_ray.errors import ConfigError
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models.ensemble import Ensemble


@torch.inference_mode()
def embed(predictor: Predictor, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Run the network once on all images and return the normalised inputs of its last linear layer.

    Not thread-safe: hooks on the network record the inputs.

    Args:
        predictor: predictor of a network of this project; its precision is used.
        images: uint8 `[N, S, S, 3]`, N ≥ 1.

    Returns:
        float32 `[N, D]`, each row of length 1; for an ensemble, the concatenated embeddings of its members.

    Raises:
        ConfigError: if the network has no linear layer.
    """
    network, manifest, precision = predictor.network, predictor.manifest, predictor.precision
    seen: list[Tensor] = []
    hooks = [head.register_forward_pre_hook(lambda _head, inputs: seen.append(inputs[0].float())) for head in _heads(network)]
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(precision.device)
    try:
        with precision.autocast():
            network(normalize(pixels, manifest.channel_mean, manifest.channel_std, precision.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    embeddings: npt.NDArray[np.float32] = F.normalize(torch.cat([F.normalize(features) for features in seen], dim=1)).cpu().numpy()
    return embeddings


def _heads(network: nn.Module) -> list[nn.Linear]:
    members: list[nn.Module] = list(network.members) if isinstance(network, Ensemble) else [network]
    heads = []
    for member in members:
        linear = [module for module in member.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ConfigError("the network has no linear layer, which embeddings need; choose another model")
        heads.append(linear[-1])
    return heads

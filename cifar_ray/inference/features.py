"""Embeddings of pictures: the input of a network's last linear layer. Similar pictures have similar embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_ray.data.batches.transforms import normalize
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models.ensemble import leaves
from cifar_ray.models.stages import head_name


@torch.inference_mode()
def embed(predictor: Predictor, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Run the network once on all images and return the normalised inputs of its last linear layer.

    Not thread-safe: hooks on the network record the inputs.

    Args:
        predictor: predictor of a network of this project; its precision is used.
        images: uint8 `[N, S, S, 3]`, N ≥ 1.

    Returns:
        float32 `[N, D]`, each row of length 1: the mean over the views; for an ensemble, the concatenated embeddings of its members.

    Raises:
        ConfigError: if the network has no linear layer.
    """
    network, manifest, precision = predictor.network, predictor.manifest, predictor.precision
    heads = _heads(network)
    seen: list[list[Tensor]] = [[] for _ in heads]  # by head, one input per view
    hooks = [
        head.register_forward_pre_hook(lambda _head, inputs, own=own: own.append(inputs[0].float()))
        for head, own in zip(heads, seen, strict=True)
    ]
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(precision.device)
    try:
        with precision.autocast():
            network(normalize(pixels, manifest.channel_mean, manifest.channel_std, precision.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    embeddings: npt.NDArray[np.float32] = (
        F.normalize(torch.cat([F.normalize(torch.stack(own).mean(0)) for own in seen], dim=1)).cpu().numpy()
    )
    return embeddings


def _heads(network: nn.Module) -> list[nn.Module]:
    return [member.get_submodule(head_name(member)) for member in leaves(network)]

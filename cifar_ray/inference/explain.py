"""Explain predictions with Grad-CAM heatmaps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.data.batches.transforms import normalize
from cifar_ray.inference.activation_maps import members, weighted
from cifar_ray.inference.engines.features import share_weights
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models.views import unview
from cifar_ray.store import Manifest

Heatmaps = npt.NDArray[np.float32]

_CHUNK_PIXELS = 256 * 32 * 32  # the activations of larger chunks do not fit into the CPU cache


def grad_cam(
    network: nn.Module, manifest: Manifest, images: npt.NDArray[np.uint8], classes: Sequence[int] | npt.NDArray[np.int64]
) -> Heatmaps:
    """Compute which parts of each image support a class (Grad-CAM: Selvaraju et al. 2017, arXiv 1610.02391, section 3).

    As in the paper, the map is of the last layer with spatial size. On CIFAR-10, hiding the hottest quarter of a picture reduces AirNet's
    probability 1.5 times as much as hiding a random quarter, while maps of earlier layers are no better than chance. The map of an
    ensemble is the mean of its members' maps. The map of several views is the mean of their maps, each moved to the position of its view.
    The arithmetic is in float32, also if predictions use another precision. The function is thread-safe: hooks are registered on a copy of
    the network's modules.

    Args:
        network: a network in evaluation mode, for example `Predictor.network`.
        manifest: contains mean and standard deviation for the normalisation.
        images: uint8 `[N, S, S, 3]`.
        classes: `[N]`, the class to explain for each image.

    Returns:
        float32 `[N, S, S]`, 0–1: 1 marks the strongest evidence for the class; all 0 if there is no evidence.

    Raises:
        ConfigError: if the network has no layer with spatial size, or its tokens form no grid.
        ValueError: if the numbers of classes and images differ.
    """
    if len(images) != len(classes):
        raise ValueError(f"expected one class per image, got {len(classes)} classes for {len(images)} images")
    device = next(itertools.chain(network.parameters(), network.buffers())).device
    explained = share_weights(network)
    targets = torch.as_tensor(np.asarray(classes, np.int64), device=device)
    chunk = max(1, _CHUNK_PIXELS // max(1, int(np.prod(images.shape[1:3]))))
    maps = [np.zeros((0, *images.shape[1:3]), np.float32)]
    for start in range(0, len(images), chunk):
        pixels = torch.from_numpy(np.require(images[start : start + chunk], requirements=["C", "W"])).to(device)
        inputs = normalize(pixels, manifest.channel_mean, manifest.channel_std, torch.float32)
        maps.append(_explain(explained, inputs, targets[start : start + chunk]).cpu().numpy())
    return np.concatenate(maps)


def explain(predictor: Predictor, image: npt.NDArray[np.uint8], class_id: int | None = None) -> tuple[int, Heatmaps]:
    """Explain one image with the network of a predictor; this works with any engine.

    Args:
        predictor: predictor of a network of this project.
        image: uint8 `[S, S, 3]`.
        class_id: number of the class to explain; `None` for the most probable class.

    Returns:
        The class, and its heatmap, float32 `[S, S]`, 0–1, as from `grad_cam`.
    """
    if class_id is None:
        found = predictor.predict(image[None])
        class_id = int((found.logits if predictor.manifest.task == "single-label" else found.probabilities).argmax())
    return class_id, grad_cam(predictor.network, predictor.manifest, image[None], [class_id])[0]


@torch.enable_grad()  # type: ignore[untyped-decorator, unused-ignore]
def _explain(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Heatmaps `[N, H, W]` of normalised inputs `[N, 3, H, W]`; the mean over members."""
    parts = members(network)
    hooks = [hook for part in parts for hook in part.record()]
    try:
        logits = network(inputs.requires_grad_())  # with all weights frozen, gradients exist only through the input
    finally:
        for hook in hooks:
            hook.remove()
    last = [part.last_maps() for part in parts]
    activations = [one.activations for maps in last for one in maps]
    gradients = iter(torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), activations))
    heat = []
    for part, maps in zip(parts, last, strict=True):
        seen = [weighted(one, next(gradients), inputs.shape[2:]) for one in maps]
        if part.views:
            seen = [unview(one, number, part.views.mirror) for number, one in enumerate(seen)]
        heat.append(_to_one(torch.stack(seen).mean(0)))
    return _to_one(torch.stack(heat).mean(0))


def _to_one(heat: Tensor) -> Tensor:
    """Scale each map so that its maximum is 1."""
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)

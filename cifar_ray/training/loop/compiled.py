"""`torch.compile` of the network that trains, done before the first step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from cifar_ray.config import CompileMode
from cifar_ray.errors import ConfigError
from cifar_ray.models import DataInitialized
from cifar_ray.models.precision import Precision

_CALLS = 3  # CUDA graphs: the second call records, the third replays


def compiled(network: nn.Module, mode: CompileMode) -> nn.Module:
    """What a training step calls: the network, or its compiled form around the same weights.

    torch keeps on disk what it compiled (`TORCHINDUCTOR_CACHE_DIR`), so another run of the same network, batch and precision starts sooner.

    Args:
        network: on its device.
        mode: `default` fuses what lies between convolutions; `max-autotune` besides tries several kernels for each operation and,
            on a GPU, replays a step as one CUDA graph.
    """
    if mode == "none":
        return network
    form: nn.Module = torch.compile(network, mode=mode, dynamic=False)  # type: ignore[assignment]
    return form


def warm_up(network: nn.Module, model: nn.Module, pieces: Iterable[Tensor], precision: Precision) -> None:
    """Has a compiled network compile for all it will meet: each size of piece, the stem learning and, where it will be, frozen.

    Weights, statistics and random state are left as they were.

    Args:
        network: as `compiled` gave it.
        model: what it was made from.
        pieces: normalised images, a batch of each size.
        precision: of the training.

    Raises:
        ConfigError: if the network cannot be compiled here.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    trained = [weight.requires_grad for weight in model.parameters()]
    inputs = list(pieces)
    try:
        with _random_state_kept(precision.device):
            network.train()
            _call(network, inputs, precision)
            if isinstance(model, DataInitialized):
                model.freeze_stem()
                _call(network, inputs, precision)
    except RuntimeError as error:  # torch._dynamo's are, too; naming them would import it, which takes seconds
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"compile: this network cannot be compiled here ({reason}); pass --compile none") from error
    finally:
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        for weight, was_trained in zip(model.parameters(), trained, strict=True):
            weight.requires_grad_(was_trained)
        model.zero_grad(set_to_none=True)


def _call(network: nn.Module, inputs: Iterable[Tensor], precision: Precision) -> None:
    for images in inputs:
        for _ in range(_CALLS):
            with precision.autocast():
                logits = network(images).float()
            logits.sum().backward()


@contextlib.contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield

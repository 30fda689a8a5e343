"""Compile the network with `torch.compile` before the first step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from cifar_ray.config import CompileMode
from cifar_ray.errors import ConfigError
from cifar_ray.models import DataInitialized
from cifar_ray.models.precision import Precision

_CALLS = 2  # per batch size: the first call compiles, the second one finds the compiled code


def compiled(network: nn.Module, mode: CompileMode) -> nn.Module:
    """The network for training steps: the network itself, or its compiled form with the same weights.

    torch caches compiled code on disk (`TORCHINDUCTOR_CACHE_DIR`), so another run with the same network, batch and precision starts sooner.

    Args:
        network: on its device.
        mode: `default` fuses the operations between convolutions; `max-autotune` also tries several kernels for each operation.
    """
    if mode == "none":
        return network
    # the CUDA graphs of torch's `max-autotune` reuse the memory of the logits; our own graphs (`CapturedSteps`) hold the whole step
    how = "max-autotune-no-cudagraphs" if mode == "max-autotune" else mode
    form: nn.Module = torch.compile(network, mode=how, dynamic=False)  # type: ignore[assignment]
    return form


def warm_up(network: nn.Module, model: nn.Module, pieces: Iterable[Tensor], precision: Precision) -> None:
    """Compile the network for all cases of the training: each micro-batch size, with a trainable and with a frozen stem.

    Weights do not change; batch-norm statistics, `requires_grad` and the random state are restored, and gradients are cleared.

    Args:
        network: the result of `compiled`.
        model: the network before compilation; it shares its weights with `network`.
        pieces: normalised images, one batch of each size.
        precision: precision of the training.

    Raises:
        ConfigError: if the network cannot be compiled on this machine.
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
    except RuntimeError as error:  # base class of torch._dynamo's errors; importing torch._dynamo takes seconds
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"compile: this network cannot be compiled on this machine ({reason}); pass --compile none") from error
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

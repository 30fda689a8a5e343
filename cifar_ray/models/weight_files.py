"""Read weights from a file, without running code from the file."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cifar_ray.errors import ConfigError

_NESTS = ("state_dict", "model_state_dict", "model_ema", "model", "net", "weights")  # keys under which training scripts save the state dict


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict.

    Args:
        path: `.safetensors`, or a file of `torch.save` with tensors only.

    Returns:
        Tensors by name, on the CPU, and the metadata in the header of a safetensors file.

    Raises:
        ConfigError: if the file is missing, damaged or no state dict, or would run code.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: file not found")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it then rejects with an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path}: not a torch file, or it contains more than tensors, which is not loaded for security; save only model.state_dict()"
        ) from None
    except Exception as error:  # the readers raise many exceptions for damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        reason = "it is a TorchScript program; export it as a state dict" if "TorchScript" in reason else reason
        raise ConfigError(f"{path}: not a weights file: {reason}") from None
    return _state_dict(content, path), {}


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(2):
        nested = [content[key] for key in _NESTS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
        content = nested[0] if nested else content
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{path}: no state dict found; save one with torch.save(model.state_dict(), …)")
    return {str(name): tensor for name, tensor in content.items()}

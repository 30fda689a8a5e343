"""Number format in which a network runs on a device."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from cifar_ray.cluster.private import cpu_computes_bf16
from cifar_ray.config import PrecisionName
from cifar_ray.errors import ConfigError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """A device and the number format of its matrix arithmetic; weights stay float32.

    Attributes:
        name: `bf16`, `fp16` or `fp32`.
        device: device of the network.
    """

    name: str
    device: torch.device

    @classmethod
    def resolve(cls, name: PrecisionName, device: torch.device) -> Self:
        """Choose the number format.

        Args:
            name: `auto` takes bf16 if the hardware supports it, else fp16 on a GPU, else fp32.
            device: device of the network.

        Raises:
            ConfigError: if the GPU does not support bf16.
        """
        if device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            if name == "bf16" and not has_bf16:
                raise ConfigError("precision: this GPU does not support bf16; pass --precision fp16 or auto")
            fallback = "fp16"
        else:
            has_bf16 = cpu_computes_bf16()
            fallback = "fp32"
        if name == "auto":
            return cls("bf16" if has_bf16 else fallback, device)
        return cls(name, device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of inputs and of matrix arithmetic."""
        return _DTYPES[self.name]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Context manager that runs the forward pass in this format."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Gradient scaler that prevents underflow in fp16; disabled for other formats."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def depthwise_in_float32(network: nn.Module) -> nn.Module:
    """Let depthwise convolutions compute in float32 under autocast on a CPU, where their backward pass is slow in bf16.

    Training EfficientNet-Lite0 on a CPU without AMX takes half the time (benchmarks/results/photos.md). Names and weights stay the same.

    Args:
        network: the network, which is changed and returned.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            kind: Any = type(module)
            module.__class__ = _float32_form(kind)
    return network


@cache
def _float32_form(kind: Any) -> Any:
    if getattr(kind, "computes_in_float32", False):
        return kind

    class Float32Convolution(kind):  # type: ignore[misc]
        computes_in_float32 = True

        def forward(self, images: Tensor) -> Any:
            if not torch.is_autocast_enabled("cpu"):
                return super().forward(images)
            with torch.autocast("cpu", enabled=False):
                return super().forward(images.float()).to(torch.get_autocast_dtype("cpu"))

        def __reduce_ex__(self, protocol: Any) -> Any:  # copies and pickles name the class by the one that it extends
            return (_new_float32_form, (kind,), *super().__reduce_ex__(protocol)[2:])

    return Float32Convolution


def _new_float32_form(kind: Any) -> Any:
    form = _float32_form(kind)
    return form.__new__(form)

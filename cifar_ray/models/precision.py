"""Number format in which a network runs on a device."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Self

import torch

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

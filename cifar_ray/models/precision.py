"""In which number format a network runs on a device."""

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
    """A device and the format of its matrix arithmetic; weights stay float32.

    Attributes:
        name: `bf16`, `fp16` or `fp32`.
        device: where the network runs.
    """

    name: str
    device: torch.device

    @classmethod
    def resolve(cls, name: PrecisionName, device: torch.device) -> Self:
        """Chooses the format.

        Args:
            name: `auto` takes bf16 where the hardware computes in it, else fp16 on a GPU, else fp32.
            device: where the network will run.

        Raises:
            ConfigError: if a GPU cannot compute in the format asked for.
        """
        if device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            if name == "bf16" and not has_bf16:
                raise ConfigError("precision: this GPU has no bf16; pass --precision fp16 or auto")
            fallback = "fp16"
        else:
            has_bf16 = cpu_computes_bf16()
            fallback = "fp32"
        if name == "auto":
            return cls("bf16" if has_bf16 else fallback, device)
        return cls(name, device)

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and of matrix arithmetic."""
        return _DTYPES[self.name]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Runs the forward pass in this format."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Keeps small fp16 gradients from vanishing; switched off for other formats."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

"""An engine runs one network; plain torch is the reference for all others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.data.batches.transforms import channel_constants, normalize_by
from cifar_ray.inference.engines.conversion import NetworkInput
from cifar_ray.inference.engines.features import with_features
from cifar_ray.models.precision import Precision
from cifar_ray.store import Manifest

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Outputs = tuple[Logits, npt.NDArray[np.float32]]  # logits `[N, C]` and features `[N, D]`; D is 0 without a linear head

# Maximum difference from torch in fp32, as a fraction of the largest logit (measured from its row's mean). bf16 keeps 8 bits of each
# factor: torch itself differs by about 0.01 in bf16, but by 0.2 for networks with many thin layers. For those, `choice` allows more.
TOLERANCE = {"bf16": 0.05, "fp32": 0.001}


class Engine(Protocol):
    """Runs one network. Safe to call from several threads.

    Attributes:
        name: name of the engine, an `EngineName`.
        precision: number format of the arithmetic; with an int8 form, of the operations that are not in int8.
    """

    name: str
    precision: Precision

    def logits(self, images: Pixels) -> Logits:
        """Logits, float32 `[N, C]`, of images, uint8 `[N, S, S, 3]`."""

    def outputs(self, images: Pixels) -> Outputs:
        """Logits, float32 `[N, C]`, and features, float32 `[N, D]`, of images, uint8 `[N, S, S, 3]`, from one forward pass."""

    def warm_up(self, largest: int) -> None:
        """Prepare what batches of up to `largest` images need, if anything; `Predictor.warm_up` also runs one."""


class TorchEngine:
    """Plain torch. Training evaluates with it as well, but lets depthwise convolutions compute in float32 on a CPU.

    Args:
        network: network in evaluation mode, on the precision's device, channels last.
        manifest: contains mean and standard deviation for the normalisation.
        precision: number format of the arithmetic.
    """

    name = "torch"

    def __init__(self, network: nn.Module, manifest: Manifest | NetworkInput, precision: Precision) -> None:
        self.network = network
        self.manifest = manifest
        self.precision = precision
        self._computing = with_features(network)
        self._constants: dict[int, tuple[Tensor, Tensor]] = {}
        # on a GPU, two threads would only take turns in launching kernels
        self._turn = threading.Lock() if precision.device.type == "cuda" else nullcontext()

    def logits(self, images: Pixels) -> Logits:
        """Implements `Engine`."""
        return self.outputs(images)[0]

    def outputs(self, images: Pixels) -> Outputs:
        """Implements `Engine`."""
        # Ray returns read-only arrays, which torch cannot wrap
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.precision.device)
        with self._turn:
            return both([one.cpu().numpy() for one in self.compute(pixels)])

    def warm_up(self, largest: int) -> None:
        """Implements `Engine`."""

    @torch.inference_mode()
    def compute(self, pixels: Tensor) -> list[Tensor]:
        """Logits, and features if the network has them, float32 on the device, of pixels, uint8 `[N, S, S, 3]`, on the device.

        After the first call for an image size, nothing is copied from or to the host.
        """
        width = pixels.shape[2]
        if width not in self._constants:
            self._constants[width] = channel_constants(self.manifest.channel_mean, self.manifest.channel_std, width, pixels.device)
        inputs = normalize_by(pixels, self._constants[width], self.precision.dtype)
        with self.precision.autocast():
            outputs = self._computing(inputs)
        return [one.float() for one in ([outputs] if isinstance(outputs, Tensor) else outputs)]


def both(outputs: Sequence[Logits]) -> Outputs:
    """Logits and features; without features, an array of width 0."""
    logits = outputs[0]
    return logits, outputs[1] if len(outputs) > 1 else np.zeros((len(logits), 0), np.float32)

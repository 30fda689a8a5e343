"""Networks from pixels, for export and for conversion to OpenVINO."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_ray.data.batches.transforms import normalize
from cifar_ray.data.statistics import ChannelValues
from cifar_ray.store import Manifest, Quantization


@dataclass(frozen=True)
class NetworkInput:
    """The facts about a network that an engine needs, for a network without a manifest; the field names are those of `Manifest`."""

    image_size_px: int
    channel_mean: ChannelValues
    channel_std: ChannelValues
    temperature: float = 1.0
    quantization: Quantization | None = None


class FromPixels(nn.Module):
    """A network with its normalisation, for export and conversion.

    Args:
        network: maps normalised images, `[N, 3, S, S]`, to one or more outputs.
        manifest: contains mean and standard deviation for the normalisation.
    """

    def __init__(self, network: nn.Module, manifest: Manifest | NetworkInput) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = manifest.channel_mean, manifest.channel_std

    def forward(self, images: Tensor) -> Any:
        """The outputs for images, uint8 `[N, S, S, 3]`."""
        return self.network(normalize(images, self.mean, self.std, torch.float32))


def convert(network: nn.Module, manifest: Manifest | NetworkInput) -> Any:
    """Convert to an `openvino.Model` that takes uint8 images, `[N, S, S, 3]`, for any N.

    `openvino.convert_model` is not used, because it sends usage reports.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    size = manifest.image_size_px
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        # TorchScript is deprecated, but torch.export takes ten times as long, and OpenVINO supports both
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(FromPixels(network, manifest), example, check_trace=False)  # type: ignore[no-untyped-call]
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # in a variable, because OpenVINO does not keep the decoder alive during the conversion
        model = frontend.convert(frontend.load(decoder))
    model.reshape([-1, size, size, 3])
    return model

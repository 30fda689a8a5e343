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
    """What an engine must know of a network whose manifest is not written yet; the names are those of `Manifest`."""

    image_size_px: int
    channel_mean: ChannelValues
    channel_std: ChannelValues
    temperature: float = 1.0
    quantization: Quantization | None = None


class FromPixels(nn.Module):
    """A network with its normalisation, for export and conversion.

    Args:
        network: from normalised images to one or more outputs.
        manifest: for the normalisation.
    """

    def __init__(self, network: nn.Module, manifest: Manifest | NetworkInput) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = manifest.channel_mean, manifest.channel_std

    def forward(self, images: Tensor) -> Any:
        """The outputs for images, uint8 `[N, S, S, 3]`."""
        return self.network(normalize(images, self.mean, self.std, torch.float32))


def convert(network: nn.Module, manifest: Manifest | NetworkInput) -> Any:
    """Convert to an `openvino.Model` of uint8 images for any batch size, without `openvino.convert_model`, which reports its use."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    size = manifest.image_size_px
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        # TorchScript is deprecated, but torch.export takes ten times as long, and OpenVINO supports both
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(FromPixels(network, manifest), example, check_trace=False)  # type: ignore[no-untyped-call]
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # a variable, because OpenVINO does not keep it alive during the conversion
        model = frontend.convert(frontend.load(decoder))
    model.reshape([-1, size, size, 3])
    return model

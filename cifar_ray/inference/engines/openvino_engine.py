"""OpenVINO: faster than torch on CPUs for most networks; only it can run the int8 form of a network (`inference/int8.py`)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch

from cifar_ray.errors import ConfigError, MissingDependencyError
from cifar_ray.inference.engines.conversion import convert
from cifar_ray.inference.engines.engine import TOLERANCE, Logits, Outputs, Pixels, TorchEngine, both
from cifar_ray.inference.engines.features import with_features
from cifar_ray.models.precision import Precision

# The manifest records the deviation of the int8 logits at the time of quantization, when also the accuracy on real pictures was
# measured. On another machine, the deviation may be larger by this factor.
_INT8_TOLERANCE = 1.5
INT8_FILES = ("openvino_int8.xml", "openvino_int8.bin")


class OpenVinoEngine:
    """The network and its normalisation, compiled by OpenVINO for this CPU; it uses as many threads as torch.

    Args:
        reference: the engine whose network is compiled; it is not changed.
        int8: the int8 form to run instead of the network: contents of `INT8_FILES` by name.

    Attributes:
        tolerance: maximum allowed `deviation`.

    Raises:
        MissingDependencyError: if OpenVINO is not installed.
        ConfigError: if OpenVINO does not support the device or precision.
        RuntimeError: if the network cannot be compiled; torch's tracing and OpenVINO may also raise other exceptions.
    """

    def __init__(self, reference: TorchEngine, int8: Mapping[str, bytes] | None = None) -> None:
        precision = reference.precision
        if precision.device.type != "cpu" or precision.name not in TOLERANCE:
            raise ConfigError(f"engine: openvino only supports CPUs with {' or '.join(TOLERANCE)}; use engine torch or auto")
        core = _core(import_openvino())
        # with int8, bf16 is not faster than fp32 for the other operations
        self.precision = Precision("fp32", precision.device) if int8 else precision
        self.name = "openvino-int8" if int8 else "openvino"
        recorded = reference.manifest.quantization
        self.tolerance = _INT8_TOLERANCE * recorded.deviation if int8 and recorded else TOLERANCE[precision.name]
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[self.precision.name],
            "ENABLE_CPU_PINNING": False,  # with pinning, all replicas of a machine would use its first cores
        }
        model = (
            core.read_model(*(int8[file] for file in INT8_FILES)) if int8 else convert(with_features(reference.network), reference.manifest)
        )
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        self._lock = threading.Lock()  # calls share the memory of the request's activations

    def logits(self, images: Pixels) -> Logits:
        """Implements `Engine`."""
        return self.outputs(images)[0]

    def outputs(self, images: Pixels) -> Outputs:
        """Implements `Engine`. An int8 form made by an older release has no features."""
        with self._lock:
            results = self._request.infer([np.ascontiguousarray(images)], share_inputs=True)
            return both([results[number] for number in range(len(results))])

    def warm_up(self, largest: int) -> None:
        """Implements `Engine`."""


def import_openvino() -> Any:
    """Import OpenVINO.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise MissingDependencyError("openvino is not installed: pip install 'cifar-ray[openvino]'") from None
    return openvino


@cache
def _core(openvino: Any) -> Any:
    """The only `openvino.Core` of the process, never destroyed.

    Each core sets an alternate signal stack and restores the previous one when it is destroyed. If two cores are destroyed in the order
    of their creation, the second restores the freed stack of the first, and the next signal kills the process (measured with OpenVINO
    2026.4).
    """
    return openvino.Core()

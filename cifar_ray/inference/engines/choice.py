"""Inference engines: plain torch, which is the reference, and OpenVINO, which is used where it is faster.

A bundle may also contain an int8 form of its network (`inference/int8.py`), which only OpenVINO can run.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.config import EngineName
from cifar_ray.data.batches.transforms import normalize
from cifar_ray.errors import CifarRayError, ConfigError, MissingDependencyError
from cifar_ray.inference.engines.conversion import NetworkInput, convert
from cifar_ray.inference.engines.features import with_features
from cifar_ray.inference.engines.synthetic_pictures import gradients, like_photographs
from cifar_ray.models.precision import Precision
from cifar_ray.store import Manifest

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Outputs = tuple[Logits, npt.NDArray[np.float32]]  # logits `[N, C]` and features `[N, D]`; D is 0 without a linear head

# Maximum difference from torch in fp32, as a fraction of the largest logit (measured from its row's mean). bf16 keeps 8 bits of each
# factor: torch itself differs by about 0.01 in bf16, but by 0.2 for networks with many thin layers. See `_BF16_TOLERANCE` for those.
TOLERANCE = {"bf16": 0.05, "fp32": 0.001}
# The manifest records the deviation of the int8 logits at the time of quantization, when also the accuracy on real pictures was
# measured. On another machine, the deviation may be larger by this factor.
_INT8_TOLERANCE = 1.5
_BF16_TOLERANCE = 1.5  # an engine in bf16 may deviate by this multiple of the deviation of torch in bf16
INT8_FILES = ("openvino_int8.xml", "openvino_int8.bin")
_TIMED_BATCHES = (1, 8)
_TIMED_REPEATS = 3
_WORTHWHILE = 1.05


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


class TorchEngine:
    """Plain torch, as in the evaluation during training.

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

    def logits(self, images: Pixels) -> Logits:
        """Implements `Engine`."""
        return self.outputs(images)[0]

    @torch.inference_mode()
    def outputs(self, images: Pixels) -> Outputs:
        """Implements `Engine`."""
        # Ray returns read-only arrays, which torch cannot wrap
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.precision.device)
        inputs = normalize(pixels, self.manifest.channel_mean, self.manifest.channel_std, self.precision.dtype)
        with self.precision.autocast():
            outputs = self._computing(inputs)
        return _both([outputs.float().cpu().numpy()] if isinstance(outputs, Tensor) else [one.float().cpu().numpy() for one in outputs])


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
            return _both([results[number] for number in range(len(results))])


def _both(outputs: Sequence[Logits]) -> Outputs:
    logits = outputs[0]
    return logits, outputs[1] if len(outputs) > 1 else np.zeros((len(logits), 0), np.float32)


def choose(
    reference: TorchEngine, name: EngineName, attachments: Mapping[str, bytes] | None = None, *, may_be_exact: bool = False
) -> tuple[Engine, str]:
    """Choose the fastest engine whose logits match torch in fp32 within the engine's tolerance.

    Args:
        reference: plain torch, in the requested precision.
        name: `auto`, or a required engine.
        attachments: attachments of the bundle, which may contain an int8 form.
        may_be_exact: whether OpenVINO may compute in fp32 if its bf16 deviates too much, or is not faster than torch.

    Returns:
        The engine, and the reason for the choice as a clause for the log.

    Raises:
        MissingDependencyError: if the requested engine is not installed.
        ConfigError: if the requested engine cannot run this network on this machine, or its deviation is too large.
    """
    if name == "torch":
        return reference, "as configured"
    int8 = attachments if attachments and reference.manifest.quantization else None
    if name == "openvino-int8" and int8 is None:
        raise ConfigError("engine: this bundle has no int8 form; create one with: cifar-ray quantize NAME")
    if name != "auto":
        return _checked(reference, int8 if name == "openvino-int8" else None), "as configured"
    best: Engine = reference
    reasons = []
    plain = [(reference, None)]
    if may_be_exact and reference.precision.name == "bf16":  # OpenVINO in fp32 is faster than torch in bf16 for many networks
        exact = TorchEngine(reference.network, reference.manifest, Precision("fp32", reference.precision.device))
        plain.append((exact, None))
    for computing, form in [*plain, (reference, int8)] if int8 else plain:
        if form is None and best is not reference:
            continue
        try:
            candidate = _checked(computing, form)
        except (MissingDependencyError, ConfigError) as refusal:
            reasons.append(str(refusal).removeprefix("engine: "))
            continue
        gain = speedup(candidate, best, reference.manifest.image_size_px)
        reasons.append(f"{candidate.name} measured {gain:.1f} times as fast as {best.name}")
        best = candidate if gain > _WORTHWHILE else best
    return best, ", ".join(dict.fromkeys(reasons))


def _checked(reference: TorchEngine, int8: Mapping[str, bytes] | None) -> Engine:
    try:
        candidate = OpenVinoEngine(reference, int8)
        size_px = reference.manifest.image_size_px
        images = like_photographs(size_px) if int8 is None else gradients(size_px)
        error = deviation(candidate, reference, images)
    except CifarRayError:
        raise
    except Exception as failure:  # tracing, converting and compiling raise many exceptions, and plain torch still works
        raise ConfigError(f"engine: openvino cannot run this network: {' '.join(str(failure).split())[:200]}") from None
    tolerance = candidate.tolerance
    if error > tolerance and int8 is None and reference.precision.name == "bf16":
        tolerance = max(tolerance, _BF16_TOLERANCE * deviation(reference, reference, images))
    if not error <= tolerance:
        raise ConfigError(
            f"engine: the logits of {candidate.name} deviate by {100 * error:.2f} %, "
            f"the maximum is {100 * tolerance:.2f} %; use engine torch"
        )
    return candidate


def deviation(engine: Engine, reference: TorchEngine, images: Pixels) -> float:
    """Largest difference from the logits of torch in fp32, as a fraction of the largest logit (measured from its row's mean)."""
    manifest, exact = reference.manifest, Precision("fp32", reference.precision.device)
    expected = TorchEngine(reference.network, manifest, exact).logits(images)
    scale = np.abs(expected - expected.mean(axis=1, keepdims=True)).max()
    return float(np.abs(engine.logits(images) - expected).max() / scale)


def speedup(engine: Engine, reference: Engine, image_size_px: int) -> float:
    """Speed of an engine ÷ speed of a reference: geometric mean over batch sizes 1 and 8, each from the best of three alternating runs."""
    gains = []
    for count in _TIMED_BATCHES:
        images = np.zeros((count, image_size_px, image_size_px, 3), np.uint8)
        best = {reference.name: math.inf, engine.name: math.inf}
        for repeat in range(1 + _TIMED_REPEATS):
            for runner in (reference, engine):
                started = time.perf_counter()
                runner.logits(images)
                if repeat:  # the first run is slower: it allocates memory
                    best[runner.name] = min(best[runner.name], time.perf_counter() - started)
        gains.append(best[reference.name] / best[engine.name])
    return statistics.geometric_mean(gains)


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

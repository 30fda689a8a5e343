"""What computes the logits: plain torch, which always works and is the reference, or OpenVINO where it is measured faster.

A bundle may bring the int8 form of its network besides (`inference/int8.py`), which OpenVINO runs too.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.config import EngineName
from cifar_ray.data.batches.transforms import normalize
from cifar_ray.errors import CifarRayError, ConfigError, MissingDependencyError
from cifar_ray.models.precision import Precision
from cifar_ray.store import Manifest

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

# Largest difference from torch in fp32, as a share of the largest logit (from its row's mean). bf16 keeps 8 bits of each factor:
# eager torch itself is off by about 0.01.
TOLERANCE = {"bf16": 0.05, "fp32": 0.001}
# What int8 costs in accuracy was measured on real pictures when it was made, and the manifest says how far off its logits were then:
# elsewhere they may be so many times as far off.
_INT8_TOLERANCE = 1.5
INT8_FILES = ("openvino_int8.xml", "openvino_int8.bin")
_CHECKED_IMAGES = 16
_TIMED_BATCHES = (1, 8)
_TIMED_REPEATS = 3
_WORTHWHILE = 1.05


class Engine(Protocol):
    """Runs one network. Safe to call from several threads.

    Attributes:
        name: as `EngineName` has it.
        precision: of the arithmetic, of that beside int8.
    """

    name: str
    precision: Precision

    def logits(self, images: Pixels) -> Logits:
        """Logits, `[N, C]`, of images, uint8 `[N, S, S, 3]`."""


class TorchEngine:
    """The network as training evaluates it.

    Args:
        network: in evaluation mode, on the precision's device, channels last.
        manifest: for normalisation.
        precision: of the arithmetic.
    """

    name = "torch"

    def __init__(self, network: nn.Module, manifest: Manifest, precision: Precision) -> None:
        self.network = network
        self.manifest = manifest
        self.precision = precision

    @torch.inference_mode()
    def logits(self, images: Pixels) -> Logits:
        """As the protocol says."""
        # Ray hands out read-only arrays, which torch does not wrap
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.precision.device)
        inputs = normalize(pixels, self.manifest.channel_mean, self.manifest.channel_std, self.precision.dtype)
        with self.precision.autocast():
            logits = self.network(inputs)
        result: Logits = logits.float().cpu().numpy()
        return result


class OpenVinoEngine:
    """The same network, normalisation included, compiled by OpenVINO for this CPU, with as many threads as torch has here.

    Args:
        reference: what to compile; stays as it is.
        int8: run this form of it instead: contents of `INT8_FILES` by name.

    Attributes:
        tolerance: largest `deviation` to put up with.

    Raises:
        MissingDependencyError: if OpenVINO is not installed.
        ConfigError: if this device or precision is not for OpenVINO.
        RuntimeError: or another exception of torch's tracing or of OpenVINO, if the network cannot be compiled.
    """

    def __init__(self, reference: TorchEngine, int8: Mapping[str, bytes] | None = None) -> None:
        precision = reference.precision
        if precision.device.type != "cpu" or precision.name not in TOLERANCE:
            raise ConfigError(f"engine: openvino computes on CPUs in {' or '.join(TOLERANCE)}; use engine=torch or auto")
        core = _core(import_openvino())
        # beside int8, bf16 is not faster than fp32
        self.precision = Precision("fp32", precision.device) if int8 else precision
        self.name = "openvino-int8" if int8 else "openvino"
        recorded = reference.manifest.quantization
        self.tolerance = _INT8_TOLERANCE * recorded.deviation if int8 and recorded else TOLERANCE[precision.name]
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[self.precision.name],
            "ENABLE_CPU_PINNING": False,  # replicas on one machine would all sit on its first cores
        }
        model = core.read_model(*(int8[file] for file in INT8_FILES)) if int8 else convert(reference)
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        self._lock = threading.Lock()  # the request owns the memory of its activations

    def logits(self, images: Pixels) -> Logits:
        """As the protocol says."""
        with self._lock:
            result: Logits = self._request.infer([np.ascontiguousarray(images)], share_inputs=True)[0]
        return result


def choose(reference: TorchEngine, name: EngineName, attachments: Mapping[str, bytes] | None = None) -> tuple[Engine, str]:
    """Takes the fastest engine whose logits are those of torch in fp32, within its tolerance.

    Args:
        reference: plain torch, in the precision wanted.
        name: `auto`, or one that must be taken.
        attachments: of the bundle: an int8 form among them may be taken.

    Returns:
        The engine, and why it was taken, as a clause for the log.

    Raises:
        MissingDependencyError: if the engine asked for is not installed.
        ConfigError: if it cannot compute this network here, or not well enough.
    """
    if name == "torch":
        return reference, "as asked"
    int8 = attachments if attachments and reference.manifest.quantization else None
    if name == "openvino-int8" and int8 is None:
        raise ConfigError("engine: this bundle has no int8 form; make one with: python -m cifar_ray.quantize NAME")
    if name != "auto":
        return _checked(reference, int8 if name == "openvino-int8" else None), "as asked"
    best: Engine = reference
    reasons = []
    for form in (None, int8) if int8 else (None,):
        try:
            candidate = _checked(reference, form)
        except (MissingDependencyError, ConfigError) as refusal:
            reasons.append(str(refusal).removeprefix("engine: "))
            continue
        gain = speedup(candidate, best, reference.manifest.image_size_px)
        reasons.append(f"{candidate.name} is {gain:.1f} times as fast as {best.name}")
        best = candidate if gain > _WORTHWHILE else best
    return best, ", ".join(dict.fromkeys(reasons))


def _checked(reference: TorchEngine, int8: Mapping[str, bytes] | None) -> Engine:
    try:
        candidate = OpenVinoEngine(reference, int8)
        error = deviation(candidate, reference)
    except CifarRayError:
        raise
    except Exception as failure:  # tracing, converting and compiling fail in their own ways, and plain torch still works
        raise ConfigError(f"engine: openvino cannot run this network: {' '.join(str(failure).split())[:200]}") from None
    if not error <= candidate.tolerance:
        raise ConfigError(f"engine: {candidate.name}'s logits are off by {error:.2%} of the largest, which is too far")
    return candidate


def deviation(engine: Engine, reference: TorchEngine) -> float:
    """Largest difference from torch in fp32, as a share of the largest logit, over colour gradients.

    They are as smooth as photos are, which int8 was calibrated on: noise is too far from those.
    """
    manifest, exact = reference.manifest, Precision("fp32", reference.precision.device)
    images = _gradients(manifest.image_size_px)
    expected = TorchEngine(reference.network, manifest, exact).logits(images)
    scale = np.abs(expected - expected.mean(axis=1, keepdims=True)).max()
    return float(np.abs(engine.logits(images) - expected).max() / scale)


def _gradients(size_px: int) -> Pixels:
    """Some pictures, uint8 `[N, S, S, 3]`, between four corners of random colours."""
    corners = np.random.default_rng(0).integers(0, 256, (_CHECKED_IMAGES, 2, 2, 3))
    ramp = np.linspace(0, 1, size_px)
    weights = np.stack([1 - ramp, ramp])
    pictures: Pixels = np.einsum("nijc,iy,jx->nyxc", corners, weights, weights).astype(np.uint8)
    return pictures


def speedup(engine: Engine, reference: Engine, image_size_px: int) -> float:
    """How many times as fast, over small batches: geometric mean of the best of a few runs taken in turn."""
    gains = []
    for count in _TIMED_BATCHES:
        images = np.zeros((count, image_size_px, image_size_px, 3), np.uint8)
        best = {reference.name: math.inf, engine.name: math.inf}
        for repeat in range(1 + _TIMED_REPEATS):
            for runner in (reference, engine):
                started = time.perf_counter()
                runner.logits(images)
                if repeat:  # the first run allocates
                    best[runner.name] = min(best[runner.name], time.perf_counter() - started)
        gains.append(best[reference.name] / best[engine.name])
    return statistics.geometric_mean(gains)


def import_openvino() -> Any:
    """The package.

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
    """The only one, which never ends.

    Each gives its thread a stack for signals and restores the one before when it ends. Of two that end in the order they began, the
    second restores the first one's, gone by then, and the next signal kills the process (measured with OpenVINO 2026.4).
    """
    return openvino.Core()


class FromPixels(nn.Module):
    """A network with its normalisation in front, for those who take it elsewhere."""

    def __init__(self, engine: TorchEngine) -> None:
        super().__init__()
        self.network = engine.network
        self.mean = engine.manifest.channel_mean
        self.std = engine.manifest.channel_std

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `[N, C]`, of images, uint8 `[N, S, S, 3]`."""
        logits: Tensor = self.network(normalize(images, self.mean, self.std, torch.float32))
        return logits


def convert(engine: TorchEngine) -> Any:
    """An `openvino.Model` of any batch size. `openvino.convert_model` would do, but it also reports its use to a server."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    size = engine.manifest.image_size_px
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        # TorchScript is deprecated, but torch.export takes ten times as long, and OpenVINO reads both
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(FromPixels(engine), example, check_trace=False)  # type: ignore[no-untyped-call]
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # named, because OpenVINO does not keep it alive while converting
        model = frontend.convert(frontend.load(decoder))
    model.reshape([-1, size, size, 3])
    return model

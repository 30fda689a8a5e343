"""What computes the logits: plain torch, which always works and is the reference, or OpenVINO where it is measured faster."""

from __future__ import annotations

import math
import statistics
import threading
import time
import warnings
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.config import EngineName
from cifar_ray.data.transforms import normalize
from cifar_ray.errors import CifarRayError, ConfigError, MissingDependencyError
from cifar_ray.models.precision import Precision
from cifar_ray.store import Manifest

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

# Largest difference from torch in fp32, as a share of the largest logit (from its row's mean). bf16 keeps 8 bits of each factor:
# eager torch itself is off by about 0.01.
TOLERANCE = {"bf16": 0.05, "fp32": 0.001}
_CHECKED_IMAGES = 16
_TIMED_BATCHES = (1, 8)
_TIMED_REPEATS = 3
_WORTHWHILE = 1.05


class Engine(Protocol):
    """Runs one network. Safe to call from several threads."""

    name: str

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

    Raises:
        MissingDependencyError: if OpenVINO is not installed.
        ConfigError: if this device or precision is not for OpenVINO.
        RuntimeError: or another exception of torch's tracing or of OpenVINO, if the network cannot be compiled.
    """

    name = "openvino"

    def __init__(self, reference: TorchEngine) -> None:
        precision = reference.precision
        if precision.device.type != "cpu" or precision.name not in TOLERANCE:
            raise ConfigError(f"engine: openvino computes on CPUs in {' or '.join(TOLERANCE)}; use engine=torch or auto")
        try:
            import openvino
        except ImportError:
            raise MissingDependencyError("openvino is not installed: pip install 'cifar-ray[openvino]'") from None
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp32": "f32"}[precision.name],
            "ENABLE_CPU_PINNING": False,  # replicas on one machine would all sit on its first cores
        }
        compiled = openvino.Core().compile_model(_convert(reference), "CPU", settings)
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()  # the request owns the memory of its activations

    def logits(self, images: Pixels) -> Logits:
        """As the protocol says."""
        with self._lock:
            result: Logits = self._request.infer([np.ascontiguousarray(images)], share_inputs=True)[0]
        return result


def choose(reference: TorchEngine, name: EngineName) -> tuple[Engine, str]:
    """Takes the fastest engine whose logits are those of torch in fp32 within `TOLERANCE`.

    Args:
        reference: plain torch, in the precision wanted.
        name: `auto`, or one that must be taken.

    Returns:
        The engine, and why it was taken, as a clause for the log.

    Raises:
        MissingDependencyError: if the engine asked for is not installed.
        ConfigError: if it cannot compute this network here, or not well enough.
    """
    if name == "torch":
        return reference, "as asked"
    try:
        candidate = _checked(reference)
    except (MissingDependencyError, ConfigError) as refusal:
        if name != "auto":
            raise
        return reference, str(refusal).removeprefix("engine: ")
    if name != "auto":
        return candidate, "as asked"
    gain = speedup(candidate, reference)
    return candidate if gain > _WORTHWHILE else reference, f"openvino is {gain:.1f} times as fast as torch"


def _checked(reference: TorchEngine) -> Engine:
    try:
        candidate = OpenVinoEngine(reference)
        error = deviation(candidate, reference)
    except CifarRayError:
        raise
    except Exception as failure:  # tracing, converting and compiling fail in their own ways, and plain torch still works
        raise ConfigError(f"engine: openvino cannot run this network: {' '.join(str(failure).split())[:200]}") from None
    if not error <= TOLERANCE[reference.precision.name]:
        raise ConfigError(f"engine: openvino's logits are off by {error:.2%} of the largest, which is too far")
    return candidate


def deviation(engine: Engine, reference: TorchEngine) -> float:
    """Largest difference from torch in fp32, as a share of the largest logit, over noise, plain and half-dark pictures."""
    manifest, exact = reference.manifest, Precision("fp32", reference.precision.device)
    size = manifest.image_size_px
    images = np.random.default_rng(0).integers(0, 256, (_CHECKED_IMAGES, size, size, 3), dtype=np.uint8)
    images[::4] = images[::4, :1, :1]
    images[1::4, : size // 2] //= 4
    expected = TorchEngine(reference.network, manifest, exact).logits(images)
    scale = np.abs(expected - expected.mean(axis=1, keepdims=True)).max()
    return float(np.abs(engine.logits(images) - expected).max() / scale)


def speedup(engine: Engine, reference: TorchEngine) -> float:
    """How many times as fast, over small batches: geometric mean of the best of a few runs taken in turn."""
    size, gains = reference.manifest.image_size_px, []
    for count in _TIMED_BATCHES:
        images = np.zeros((count, size, size, 3), np.uint8)
        best = {reference.name: math.inf, engine.name: math.inf}
        for repeat in range(1 + _TIMED_REPEATS):
            for runner in (reference, engine):
                started = time.perf_counter()
                runner.logits(images)
                if repeat:  # the first run allocates
                    best[runner.name] = min(best[runner.name], time.perf_counter() - started)
        gains.append(best[reference.name] / best[engine.name])
    return statistics.geometric_mean(gains)


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


def _convert(engine: TorchEngine) -> Any:
    """An OpenVINO model of any batch size. `openvino.convert_model` would do, but it also reports its use to a server."""
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

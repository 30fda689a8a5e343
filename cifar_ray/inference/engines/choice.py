"""Choose the fastest engine that gives the same answers as plain torch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

import numpy as np

from cifar_ray.config import EngineName
from cifar_ray.errors import CifarRayError, ConfigError, MissingDependencyError
from cifar_ray.inference.engines.engine import Engine, Pixels, TorchEngine
from cifar_ray.inference.engines.graph_engine import CudaGraphEngine
from cifar_ray.inference.engines.openvino_engine import OpenVinoEngine
from cifar_ray.inference.engines.synthetic_pictures import gradients, like_photographs
from cifar_ray.models.precision import Precision

_HALF_TOLERANCE = 1.5  # an engine in bf16 or fp16 may deviate by this multiple of the deviation of torch in the same format
_TIMED_BATCHES = (1, 8)
_TIMED_REPEATS = 3
_WORTHWHILE = 1.05


class _CheckedEngine(Engine, Protocol):
    tolerance: float


_Make = Callable[[TorchEngine], _CheckedEngine]


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
        makers: dict[str, _Make] = {
            "openvino": OpenVinoEngine,
            "openvino-int8": partial(OpenVinoEngine, int8=int8),
            "cuda-graph": CudaGraphEngine,
        }
        return _checked(makers[name], reference), "as configured"
    best: Engine = reference
    reasons = []
    for computing, make, is_needed in _candidates(reference, int8, may_be_exact):
        if best is not reference and not is_needed:
            continue
        try:
            candidate = _checked(make, computing)
            gain = speedup(candidate, best, reference.manifest.image_size_px)
        except (MissingDependencyError, ConfigError) as refusal:
            reasons.append(str(refusal).removeprefix("engine: "))
            continue
        reasons.append(f"{candidate.name} measured {gain:.1f} times as fast as {best.name}")
        best = candidate if gain > _WORTHWHILE else best
    return best, ", ".join(dict.fromkeys(reasons))


def _candidates(reference: TorchEngine, int8: Mapping[str, bytes] | None, may_be_exact: bool) -> Iterator[tuple[TorchEngine, _Make, bool]]:
    """Engines that may be faster than torch: what each is made from, how, and whether to try it if another one is faster already."""
    device = reference.precision.device
    if device.type == "cuda":
        yield reference, CudaGraphEngine, True
        return
    yield reference, OpenVinoEngine, True
    if may_be_exact and reference.precision.name == "bf16":  # OpenVINO in fp32 is faster than torch in bf16 for many networks
        yield TorchEngine(reference.network, reference.manifest, Precision("fp32", device)), OpenVinoEngine, False
    if int8:
        yield reference, partial(OpenVinoEngine, int8=int8), True


def _checked(make: _Make, reference: TorchEngine) -> Engine:
    try:
        candidate = make(reference)
        size_px = reference.manifest.image_size_px
        is_int8 = candidate.name == "openvino-int8"
        images = gradients(size_px) if is_int8 else like_photographs(size_px)
        # graphs fill batches up, so they are also compared on sizes that they do not have
        counts = (1, 3, len(images) - 1) if candidate.name == "cuda-graph" else (len(images),)
        error = float(np.max([deviation(candidate, reference, images[:count]) for count in counts]))
    except CifarRayError:
        raise
    except Exception as failure:  # tracing, converting, compiling and capturing raise many exceptions, and plain torch still works
        engine = "cuda-graph" if reference.precision.device.type == "cuda" else "openvino"
        raise ConfigError(f"engine: {engine} cannot run this network: {' '.join(str(failure).split())[:200]}") from None
    tolerance = candidate.tolerance
    if error > tolerance and not is_int8 and reference.precision.name != "fp32":
        tolerance = max(tolerance, _HALF_TOLERANCE * deviation(reference, reference, images))
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

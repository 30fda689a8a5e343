"""Cost of a prediction: parameters, FLOPs and time."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from cifar_ray.inference.predictor import Predictor
from cifar_ray.models import count_flops, count_parameters

_TIMED_RUNS = 3, 7  # minimum, and maximum unless the runs take longer than `_LONG_S` together
_LONG_S = 3.0
_BATCH = 250


@dataclass(frozen=True)
class Cost:
    """Cost of one model on this machine.

    Attributes:
        parameters: number of weights, including weights that training does not change.
        trained_parameters: number of weights that training changes.
        flops: FLOPs per image in convolutions and matrix products, two per multiply-add.
        weight_bytes: size of all tensors as stored.
        latency_ms: median time for one image, from pixels to probabilities.
        images_per_s: median throughput in batches of 250 images.
        engine: engine with which both were measured.
        precision: number format of the engine.
        threads: number of torch threads.
    """

    parameters: int
    trained_parameters: int
    flops: int
    weight_bytes: int
    latency_ms: float
    images_per_s: float
    engine: str
    precision: str
    threads: int


def measure_cost(predictor: Predictor) -> Cost:
    """Count parameters and FLOPs and measure time; takes 1–2 s for a small network, 10 s for a network for photographs."""
    network = predictor.network
    tensors = list(network.state_dict().values())
    return Cost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trained_parameters=count_parameters(network),
        flops=count_flops(network, predictor.manifest.image_size_px),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        latency_ms=_median_s(predictor, 1) * 1000,
        images_per_s=_BATCH / _median_s(predictor, _BATCH),
        engine=predictor.engine,
        precision=predictor.precision.name,
        threads=torch.get_num_threads(),
    )


def _median_s(predictor: Predictor, batch: int) -> float:
    size = predictor.manifest.image_size_px
    images = np.zeros((batch, size, size, 3), np.uint8)
    predictor.predict(images)  # the first run also allocates memory
    times_s: list[float] = []
    while len(times_s) < _TIMED_RUNS[0] or (len(times_s) < _TIMED_RUNS[1] and sum(times_s) < _LONG_S):
        started = time.perf_counter()
        predictor.predict(images)
        times_s.append(time.perf_counter() - started)
    return statistics.median(times_s)

"""Forward passes as CUDA graphs, so that a GPU does not wait for Python to launch each kernel."""

from __future__ import annotations

import queue
from typing import Protocol

import numpy as np
import torch

from cifar_ray.errors import ConfigError
from cifar_ray.inference.engines.engine import Logits, Outputs, Pixels, TorchEngine, both

_LARGEST = 256  # larger batches keep a GPU busy without a graph
_LANES = 2  # one copies while the other one computes
_EAGER_RUNS = 3  # before a capture: in these, libraries choose kernels and allocate memory
_TOLERANCE = {"bf16": 0.05, "fp16": 0.05, "fp32": 0.001}


class CudaGraphEngine:
    """Plain torch on a GPU, captured as one CUDA graph for each batch size that occurs.

    Batches are filled up with black images to the next size of `batch_sizes`. Two batches can run at the same time, in two lanes: each has
    its own stream, pinned memory and graphs, so that copies of one batch overlap with the computation of the other.

    Args:
        reference: the engine that is captured.

    Attributes:
        tolerance: maximum allowed `deviation`.

    Raises:
        ConfigError: if the device is not a GPU.
    """

    name = "cuda-graph"

    def __init__(self, reference: TorchEngine) -> None:
        if reference.precision.device.type != "cuda":
            raise ConfigError("engine: cuda-graph needs an NVIDIA GPU; use engine torch or auto")
        self._reference = reference
        self.precision = reference.precision
        self.tolerance = _TOLERANCE[self.precision.name]
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for _ in range(_LANES):
            self._lanes.put(_Lane(reference))

    def logits(self, images: Pixels) -> Logits:
        """Implements `Engine`."""
        return self.outputs(images)[0]

    def outputs(self, images: Pixels) -> Outputs:
        """Implements `Engine`."""
        if len(images) > _LARGEST:
            return self._reference.outputs(images)
        lane = self._lanes.get()
        try:
            return lane.run(images)
        finally:
            self._lanes.put(lane)

    def first_batches(self, largest: int) -> list[int]:
        """Implements `Engine`: all sizes, once for each lane, because the queue hands out the lanes in turn."""
        return [count for count in batch_sizes(largest) for _ in range(_LANES)]


def batch_sizes(largest: int) -> list[int]:
    """Sizes of captured batches, up to the first one that holds `largest` images: 1, 2, 4, 8, 16, 24 … 64, 96 … 256."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, _LARGEST + 1, 32)]
    needed = min(largest, _LARGEST)
    return sizes[: 1 + next(number for number, size in enumerate(sizes) if size >= needed)]


class _Lane:
    """Runs one batch at a time."""

    def __init__(self, reference: TorchEngine) -> None:
        self._reference = reference
        self._stream: torch.cuda.Stream | None = None
        self._passes: dict[int, ForwardPass] = {}

    def run(self, images: Pixels) -> Outputs:
        size = batch_sizes(len(images))[-1]
        if size not in self._passes:
            if self._stream is None:
                self._stream = side_stream(self._reference)
            self._passes[size] = capture_forward(self._reference, size, self._stream)
        return both([one[: len(images)].copy() for one in self._passes[size].run(images)])


class ForwardPass(Protocol):
    """A forward pass of one batch size."""

    def run(self, images: Pixels) -> list[Logits]:
        """The outputs of images, and of the black images that fill the batch; the next call overwrites them."""


def side_stream(reference: TorchEngine) -> torch.cuda.Stream:
    """A stream of the engine's GPU."""
    return torch.cuda.Stream(reference.precision.device)  # type: ignore[no-untyped-call]


def capture_forward(reference: TorchEngine, size: int, stream: torch.cuda.Stream) -> ForwardPass:
    """Capture the forward pass of `size` images on a stream.

    Raises:
        RuntimeError: if an operation of the network cannot be captured.
    """
    return _CapturedForward(reference, size, stream)


class _CapturedForward:
    """Memory and graph of one batch size. Pinned memory lets copies run beside the host and the other lane."""

    def __init__(self, reference: TorchEngine, size: int, stream: torch.cuda.Stream) -> None:
        side = reference.manifest.image_size_px
        self._stream = stream
        self._sent = torch.zeros((size, side, side, 3), dtype=torch.uint8, pin_memory=True)
        self._pixels = self._sent.to(reference.precision.device)
        stream.wait_stream(torch.cuda.current_stream(reference.precision.device))
        with torch.cuda.stream(stream):
            for _ in range(_EAGER_RUNS):
                reference.compute(self._pixels)
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # other threads may wait for their copies during the capture; the stricter modes forbid this
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._results = reference.compute(self._pixels)
        self._received = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in self._results]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def run(self, images: Pixels) -> list[Logits]:
        np.copyto(self._sent.numpy()[: len(images)], images)
        with torch.cuda.stream(self._stream), torch.inference_mode():
            self._pixels.copy_(self._sent, non_blocking=True)
            self._graph.replay()
            for received, result in zip(self._received, self._results, strict=True):
                received.copy_(result, non_blocking=True)
            self._done.record()
        self._done.synchronize()
        return [one.numpy() for one in self._received]

"""Forward passes as CUDA graphs, so that a GPU does not wait for Python to launch each kernel."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any, Protocol

import numpy as np
import torch

from cifar_ray.errors import ConfigError
from cifar_ray.inference.engines.engine import TOLERANCE, Logits, Outputs, Pixels, TorchEngine, both

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # larger batches keep a GPU busy without a graph
_LANES = 2  # one copies while the other one computes
_EAGER_RUNS = 3  # before a capture: in these, libraries choose kernels and allocate memory
_capturing = threading.Lock()  # CUDA allows one capture at a time in a process

logger = logging.getLogger(__name__)


class CudaGraphEngine:
    """Plain torch on a GPU, captured as one CUDA graph for each batch size that occurs.

    Batches are filled up with black images to the next captured size. Two batches can run at the same time, in two lanes: each has its own
    stream, pinned memory and graphs, so that copies of one batch overlap with the computation of the other. A size that cannot be captured
    runs as plain torch.

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
        self.tolerance = TOLERANCE.get(self.precision.name, TOLERANCE["bf16"])
        # last in, first out: callers that run one batch at a time use only one lane, and the memory of one
        self._lanes: queue.LifoQueue[_Lane] = queue.LifoQueue()
        for _ in range(_LANES):
            self._lanes.put(_Lane(reference))

    def logits(self, images: Pixels) -> Logits:
        """Implements `Engine`."""
        return self.outputs(images)[0]

    def outputs(self, images: Pixels) -> Outputs:
        """Implements `Engine`."""
        if len(images) > _SIZES[-1]:
            return self._reference.outputs(images)
        lane = self._lanes.get()
        try:
            return lane.run(images)
        finally:
            self._lanes.put(lane)

    def warm_up(self, largest: int) -> None:
        """Implements `Engine`: captures all sizes in all lanes."""
        lanes = [self._lanes.get() for _ in range(_LANES)]
        try:
            for lane in lanes:
                for size in reversed(captured_sizes(largest)):  # the smaller ones use the memory of the largest
                    lane.prepare(size)
        finally:
            for lane in lanes:
                self._lanes.put(lane)


def captured_sizes(largest: int) -> list[int]:
    """Sizes of captured batches, up to the first one that holds `largest` images."""
    return [size for size in _SIZES if size < 2 * largest]


class _Lane:
    """Runs one batch at a time; its graphs share their memory, because only one of them runs."""

    def __init__(self, reference: TorchEngine) -> None:
        self._reference = reference
        self._resources: tuple[Any, Any] | None = None
        self._passes: dict[int, ForwardPass | None] = {}

    def prepare(self, size: int) -> ForwardPass | None:
        """The forward pass of a captured size; `None` if it cannot be captured."""
        if size not in self._passes:
            if self._resources is None:
                self._resources = lane_resources(self._reference)
            try:
                self._passes[size] = capture_forward(self._reference, size, *self._resources)
            except RuntimeError as error:  # also a lack of memory; plain torch may need less
                logger.warning(
                    "a batch of %d images cannot be captured, and runs as plain torch: %s", size, " ".join(str(error).split())[:200]
                )
                self._passes[size] = None
        return self._passes[size]

    def run(self, images: Pixels) -> Outputs:
        forward = self.prepare(captured_sizes(len(images))[-1])
        if forward is None:
            return self._reference.outputs(images)
        return both([one[: len(images)].copy() for one in forward.run(images)])


class ForwardPass(Protocol):
    """A forward pass of one batch size."""

    def run(self, images: Pixels) -> list[Logits]:
        """The outputs of images, and of the black images that fill the batch; the next call overwrites them."""


def lane_resources(reference: TorchEngine) -> tuple[Any, Any]:
    """A stream of the engine's GPU, and a pool of memory for graphs."""
    return torch.cuda.Stream(reference.precision.device), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]


def capture_forward(reference: TorchEngine, size: int, stream: Any, pool: Any) -> ForwardPass:
    """Capture the forward pass of `size` images on a stream.

    Raises:
        RuntimeError: if an operation of the network cannot be captured, or there is too little memory.
    """
    return _CapturedForward(reference, size, stream, pool)


class _CapturedForward:
    """Memory and graph of one batch size. Pinned memory lets copies run beside the host and the other lane."""

    def __init__(self, reference: TorchEngine, size: int, stream: Any, pool: Any) -> None:
        side = reference.manifest.image_size_px
        self._stream = stream
        self._sent = torch.zeros((size, side, side, 3), dtype=torch.uint8, pin_memory=True)
        self._pixels = self._sent.to(reference.precision.device)
        self._graph = torch.cuda.CUDAGraph()
        with _capturing:
            stream.wait_stream(torch.cuda.current_stream(reference.precision.device))
            with torch.cuda.stream(stream):
                for _ in range(_EAGER_RUNS):
                    reference.compute(self._pixels)
            stream.synchronize()
            # other threads may wait for their copies during the capture; the stricter modes forbid this
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
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

"""Compute features of pictures on the workers of a Ray cluster, each with a GPU or a share of the CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import ray
from ray.actor import ActorHandle
from ray.util import ActorPool

from cifar_ray.cluster.process import prepare_process
from cifar_ray.cluster.worker_pool import worker_pool
from cifar_ray.training.probe.extraction import GPU_BATCH_SIZE, Backbone, ComputeHere, Computing, Floats, Opener


@contextmanager
def feature_workers(num_workers: int, cluster: str = "auto") -> Iterator[Opener]:
    """Start workers that compute features; arguments and errors are those of `worker_pool`."""
    with worker_pool(num_workers, _Worker, lambda threads: (threads,), cluster) as workers:
        yield lambda backbone, number: _ComputeOnWorkers(workers, backbone, number)


class _Worker:
    """Actor that computes features of one view at a time."""

    def __init__(self, threads: int) -> None:
        prepare_process(threads)
        self._opened: tuple[tuple[str, bool, int], Computing] | None = None  # the last view and its network

    def precision(self, backbone: Backbone) -> str:
        """Name of the number format in which this worker computes."""
        return ComputeHere(backbone, 0).precision

    def features(self, backbone: Backbone, number: int, images: npt.NDArray[np.uint8]) -> Floats:
        """Features of view `number`, float32 `[N, D]`."""
        view = backbone.sha256, backbone.mirror, number
        if self._opened is None or self._opened[0] != view:
            self._opened = view, ComputeHere(backbone, number)
        return np.concatenate(list(self._opened[1](images)))


class _ComputeOnWorkers:
    """Implements `Computing`: gives the next batch to each idle worker."""

    def __init__(self, workers: list[ActorHandle], backbone: Backbone, number: int) -> None:
        self._workers, self._number = workers, number
        self._backbone = ray.put(backbone)
        self.precision: str = ray.get(workers[0].precision.remote(self._backbone))

    def __call__(self, images: npt.NDArray[np.uint8]) -> Iterator[Floats]:
        batches = [images[start : start + GPU_BATCH_SIZE] for start in range(0, len(images), GPU_BATCH_SIZE)]
        yield from ActorPool(self._workers).map(lambda worker, batch: worker.features.remote(self._backbone, self._number, batch), batches)

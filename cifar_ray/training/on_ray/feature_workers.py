"""Compute features of pictures on the workers of a Ray cluster, each with a GPU or a share of the CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util import ActorPool

from cifar_ray.cluster.connection import ray_cluster
from cifar_ray.cluster.failures import unwrap
from cifar_ray.cluster.plan import plan_fixed_workers
from cifar_ray.cluster.process import prepare_process
from cifar_ray.errors import ResourceError
from cifar_ray.training.probe.extraction import GPU_BATCH_SIZE, Backbone, ComputeHere, Computing, Floats, Opener

_RESTARTS = 2


@contextmanager
def feature_workers(num_workers: int) -> Iterator[Opener]:
    """Start workers that compute features; a worker that is lost is restarted, and its batch is repeated.

    Uses a running cluster, or starts one on this machine and stops it at the end of the block.

    Args:
        num_workers: number of workers.

    Raises:
        ResourceError: if the cluster has too few resources, or workers fail repeatedly.
    """
    with ray_cluster():
        plan = plan_fixed_workers(num_workers)
        worker = ray.remote(_Worker).options(**plan.actor_options(), max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
        workers = [worker.remote(plan.threads) for _ in range(plan.num_workers)]
        try:
            yield lambda backbone, number: _ComputeOnWorkers(workers, backbone, number)
        except (RayTaskError, RayActorError) as error:
            raise unwrap(error, lambda reason: ResourceError(f"a worker failed: {reason}")) from None
        finally:
            for one in workers:
                ray.kill(one)


class _Worker:
    """Computes features of one view at a time."""

    def __init__(self, threads: int) -> None:
        prepare_process(threads)
        self._open: tuple[tuple[str, bool, int], Computing] | None = None

    def precision(self, backbone: Backbone) -> str:
        """Name of the number format in which this worker computes."""
        return ComputeHere(backbone, 0).precision

    def features(self, backbone: Backbone, number: int, images: npt.NDArray[np.uint8]) -> Floats:
        """Features of view `number`, float32 `[N, D]`."""
        view = backbone.sha256, backbone.mirror, number
        if self._open is None or self._open[0] != view:
            self._open = view, ComputeHere(backbone, number)
        return np.concatenate(list(self._open[1](images)))


class _ComputeOnWorkers:
    """Implements `Computing`: gives a batch to each worker that is free."""

    def __init__(self, workers: list[ActorHandle], backbone: Backbone, number: int) -> None:
        self._workers, self._number = workers, number
        self._backbone = ray.put(backbone)
        self.precision: str = ray.get(workers[0].precision.remote(self._backbone))

    def __call__(self, images: npt.NDArray[np.uint8]) -> Iterator[Floats]:
        batches = [images[start : start + GPU_BATCH_SIZE] for start in range(0, len(images), GPU_BATCH_SIZE)]
        yield from ActorPool(self._workers).map(lambda worker, batch: worker.features.remote(self._backbone, self._number, batch), batches)

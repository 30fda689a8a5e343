"""A pool of Ray actors for a job: each worker has its own state; a failed worker is restarted, and its call is repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from cifar_ray.cluster.connection import ray_cluster
from cifar_ray.cluster.failures import unwrap
from cifar_ray.cluster.plan import plan_fixed_workers
from cifar_ray.errors import ResourceError

_RESTARTS = 2


@contextmanager
def worker_pool(
    num_workers: int, kind: type, make_arguments: Callable[[int], tuple[Any, ...]], cluster: str = "auto"
) -> Iterator[list[ActorHandle]]:
    """Start workers, and stop them at the end of the block.

    Args:
        num_workers: number of workers; each uses one GPU, or a share of the CPUs if the cluster has no GPU.
        kind: class of the workers.
        make_arguments: returns the arguments of the class for a number of torch threads; called once, after Ray is connected.
        cluster: as for `ray_cluster`.

    Raises:
        ResourceError: if the cluster has too few resources, or workers fail repeatedly.
        CifarRayError: the error that a worker raised.
    """
    with ray_cluster(cluster):
        plan = plan_fixed_workers(num_workers)
        worker = ray.remote(kind).options(**plan.actor_options(), max_restarts=_RESTARTS, max_task_retries=_RESTARTS)
        arguments = make_arguments(plan.threads)
        workers = [worker.remote(*arguments) for _ in range(plan.num_workers)]
        try:
            yield workers
        except (RayTaskError, RayActorError) as error:
            raise unwrap(error, lambda reason: ResourceError(f"a worker failed: {reason}")) from None
        finally:
            for one in workers:
                ray.kill(one)

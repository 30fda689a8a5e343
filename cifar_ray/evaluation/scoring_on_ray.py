"""Score a split on the workers of a Ray cluster. The results are the same as in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import ActorPool

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import EngineName, PrecisionName
from cifar_ray.data import ImageDataset
from cifar_ray.errors import CifarRayError, DataError, ResourceError
from cifar_ray.evaluation.scoring import BlockScores, count_blocks, device_here, score_block
from cifar_ray.evaluation.selection import Selected, load_selected
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import Bundle

_LEAST_CPUS = 0.05
_RESTARTS = 2


def score_on_ray(
    bundle: Bundle, data: Selected, corrupt_every: int | None, *, num_workers: int, precision: PrecisionName, engine: EngineName
) -> Iterator[tuple[int, BlockScores]]:
    """Give each block to the next free worker; restart workers that fail and repeat their blocks.

    Uses a running cluster, or starts one on this machine and stops it at the end.

    Args:
        bundle: the model; Ray sends it to the workers.
        data: the images; workers load them on their own hosts.
        corrupt_every: see `score_block`.
        num_workers: number of workers; each uses one GPU, or a share of the CPUs if the cluster has no GPU.
        precision: see `Predictor`.
        engine: see `Predictor`.

    Yields:
        Block numbers and scores, in the order of completion.

    Raises:
        ResourceError: if the cluster has too few resources, or workers fail repeatedly.
        DataError: if the data are missing or different on a host.
    """
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    workers = []
    try:
        options = _resources(num_workers)
        job = ray.put((bundle, data.config, data.split, data.images.fingerprint))
        scorer = ray.remote(_Scorer)
        workers = [
            scorer.options(**options, max_restarts=_RESTARTS, max_task_retries=_RESTARTS).remote(
                job, corrupt_every, precision, engine, max(1, int(options["num_cpus"]))
            )
            for _ in range(num_workers)
        ]
        pool = ActorPool(workers)
        yield from pool.map_unordered(lambda worker, block: worker.score.remote(block), range(count_blocks(len(data.images))))
    except (RayTaskError, RayActorError) as error:
        raise _reason(error) from None
    finally:
        for worker in workers:
            ray.kill(worker)
        if started_here:
            ray.shutdown()


class _Scorer:
    """A worker, which holds the model and the images and scores one block per call."""

    def __init__(
        self,
        job: tuple[Bundle, Any, Any, str],
        corrupt_every: int | None,
        precision: PrecisionName,
        engine: EngineName,
        threads: int,
    ) -> None:
        prepare_process(threads)
        self._bundle, self._config, self._split, self._fingerprint = job
        self._corrupt_every, self._precision, self._engine = corrupt_every, precision, engine
        self._ready: tuple[Predictor, ImageDataset] | None = None

    def score(self, block: int) -> tuple[int, BlockScores]:
        """Score one block; returns its number, too."""
        # Not in the constructor: Ray reports an exception there as the death of the actor, without its type.
        predictor, images = self._ready = self._ready or self._prepare()
        return block, score_block(predictor, images.images, block, self._corrupt_every)

    def _prepare(self) -> tuple[Predictor, ImageDataset]:
        images = load_selected(self._bundle.manifest, self._config, self._split).images
        if images.fingerprint != self._fingerprint:
            raise DataError(f"host {ray.util.get_node_ip_address()} has different images; copy the same data to every host")
        return Predictor(self._bundle, device_here(), self._precision, self._engine), images


def _resources(num_workers: int) -> dict[str, float]:
    """What each worker asks for, in Ray's words."""
    total, free = ray.cluster_resources(), ray.available_resources()
    cpus, gpus = free.get("CPU", 0.0), int(free.get("GPU", 0))
    if total.get("GPU", 0) >= 1:
        if num_workers > gpus:
            raise ResourceError(f"--num-workers {num_workers}: the cluster has {total['GPU']:g} GPUs, {gpus} of them free")
        return {"num_cpus": min(1.0, int(100 * cpus / num_workers) / 100), "num_gpus": 1}
    share = cpus / num_workers
    if share < _LEAST_CPUS:
        raise ResourceError(
            f"--num-workers {num_workers}: the cluster has {total.get('CPU', 0):g} CPUs, {cpus:g} of them free; ask for less"
        )
    nodes = sum(node["Alive"] for node in ray.nodes())
    if share >= 1:
        return {"num_cpus": float(int(share)) if nodes == 1 else 1.0}
    if nodes > 1:
        raise ResourceError(f"--num-workers {num_workers}: the cluster of {nodes} hosts has {total['CPU']:g} CPUs, {cpus:g} of them free")
    return {"num_cpus": int(share * 100) / 100}


def _reason(error: RayTaskError | RayActorError) -> CifarRayError:
    """Our own error where a worker raised one, else one line about the failure."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, CifarRayError):
        return cause
    lines = str(cause or error).strip().splitlines()
    return ResourceError(f"a worker failed: {lines[-1].strip() if lines else type(error).__name__}")

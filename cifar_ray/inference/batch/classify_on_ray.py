"""Classifies over all workers of a cluster, with Ray Data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from cifar_ray.errors import CifarRayError, ResourceError
from cifar_ray.inference.batch.classify import BundleClassifier, ModelJob
from cifar_ray.inference.batch.table import Part, classify_part

_LEAST_CPUS = 0.1
_RELEASE_S = 10.0


class _Worker:
    """An actor of the pool: holds the model, and writes each part it is given."""

    def __init__(self, job: ModelJob, folder: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._classifier = BundleClassifier(job)
        self._folder = folder

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row a part → one row with what became of it."""
        done = [classify_part(self._classifier, Part(row["number"], tuple(row["names"])), self._folder) for row in batch.to_pylist()]
        return pa.Table.from_pylist(done)


def classify_on_ray(job: ModelJob, parts: Sequence[Part], folder: str, num_workers: int) -> Iterator[dict[str, int]]:
    """Spreads parts over actors that each hold the model; needs a running Ray.

    A part whose worker dies is computed again by another. What is written stays written, whatever happens to the job.

    Args:
        job: model and options; its storage and the pictures must be visible on all nodes.
        parts: what to do.
        folder: where the parts are written, visible on all nodes.
        num_workers: actors, one a GPU where there are GPUs.

    Yields:
        What `classify_part` returns, as parts are finished.

    Raises:
        ResourceError: if the cluster cannot hold the workers.
        CifarRayError: what a worker raised.
    """
    resources = _resources(num_workers)
    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts pictures, Ray's would count parts
    context.print_on_execution_start = False
    rows = [{"number": part.number, "names": list(part.names)} for part in parts]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(num_workers, len(rows))),
        fn_constructor_args=(job, folder, max(1, int(resources["num_cpus"]))),
        **resources,
    )
    try:
        for done in dataset.iter_rows():
            yield {"pictures": done["pictures"], "broken": done["broken"]}
    except ray.exceptions.RayError as error:
        raise _reason(error) from None


def _resources(num_workers: int) -> dict[str, Any]:
    """What each worker gets; on a cluster whose last job has just ended, waits a little until that has given all back."""
    deadline_s = time.monotonic() + _RELEASE_S
    while True:
        free = ray.available_resources()
        cpus, gpus = free.get("CPU", 0.0), int(free.get("GPU", 0))
        share = int(cpus / num_workers * 100) / 100
        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        if share >= _LEAST_CPUS and (gpus >= num_workers or not has_gpus):
            return {"num_cpus": float(int(share)) if share >= 1 else share} | ({"num_gpus": 1} if has_gpus else {})
        if time.monotonic() > deadline_s:
            raise ResourceError(f"--num-workers {num_workers}: {cpus:g} CPUs and {gpus} GPUs are free; stop other jobs or ask for less")
        time.sleep(0.2)


def _reason(error: BaseException) -> CifarRayError:
    """Our own error where a worker raised one, else one line about the first failure."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CifarRayError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return CifarRayError(f"prediction on Ray failed: {str(error).strip().splitlines()[-1]}; what is done is kept, run it again")

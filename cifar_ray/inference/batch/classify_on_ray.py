"""Predict the parts of a job on the workers of a Ray cluster, with Ray Data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray
from ray.data import ActorPoolStrategy, DataContext

from cifar_ray import errors
from cifar_ray.cluster.failures import unwrap
from cifar_ray.cluster.plan import WorkerPlan
from cifar_ray.config.base import PriorityName
from cifar_ray.errors import CifarRayError
from cifar_ray.inference.batch.model_job import ModelJob
from cifar_ray.inference.batch.part_worker import PartWorker
from cifar_ray.inference.batch.rows import PartSource
from cifar_ray.inference.batch.table import Part


def classify_on_ray(
    job: ModelJob, parts: Sequence[Part], folder: str, plan: WorkerPlan, source: PartSource | None = None, priority: PriorityName = "normal"
) -> Iterator[dict[str, int]]:
    """Distribute parts over actors, each of which holds the model; Ray must be connected.

    If a worker fails, another worker computes its part again. Finished parts survive the failure of a worker or of the job.

    Args:
        job: model and options; its storage and the pictures must be accessible on all nodes.
        parts: the parts to predict.
        folder: folder of the finished parts, accessible on all nodes.
        plan: number of actors, and the resources of each; the job uses no other resources of the cluster.
        source: for the job of a server: reads names and pictures of the parts, which then have no names of their own.
        priority: priority of the worker processes.

    Yields:
        Counts of `pictures` and `broken` pictures of each part, as from `classify_part`, in the order of completion.

    Raises:
        CifarRayError: the error of a worker.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False  # our progress bar counts pictures, Ray's would count parts
    context.print_on_execution_start = False
    rows = [{"number": part.number, "names": list(part.names)} for part in parts]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        PartWorker,
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(plan.num_workers, len(rows))),
        fn_constructor_args=(job, folder, plan.threads, source, priority),
        **plan.actor_options(),
    )
    try:
        for done in dataset.iter_rows():
            if done["error"]:
                raise getattr(errors, done["error"])(done["message"])
            yield {"pictures": done["pictures"], "broken": done["broken"]}
    except ray.exceptions.RayError as error:
        raise unwrap(
            error, lambda reason: CifarRayError(f"prediction on Ray failed: {reason}. Finished parts are kept; run the same command again")
        ) from None

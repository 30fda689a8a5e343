"""Decodes streamed images on the cluster's free CPUs, with Ray Data, in the very order in which each worker will take them.

Every worker runs a stream of its own over the same plan, a list of chunk numbers; which pictures are in its chunks this epoch, it says in
the stream's context. So order and augmentation are those of data in memory, and Ray Data needs no shuffling of its own.
Decoding tasks import this module, so torch is not imported with it, and Ray Data, which takes a second, where it is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray
from ray import train
from ray.exceptions import RayTaskError

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import PictureFiles, StreamedImages, StreamedSplits
from cifar_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cifar_ray.cluster.plan import WorkerPlan

_NAME = "train"
_ORDER, _FINGERPRINT = "cifar_ray.order", "cifar_ray.fingerprint"
_CHUNKS_AHEAD = 8  # decoded and not yet taken, a worker


class _Decode:
    """What Ray Data's tasks do: a chunk's number → its images."""

    def __init__(self, pictures: PictureFiles) -> None:
        self._pictures = pictures

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.uint8]]:
        from ray.data import DataContext

        order = ray.get(DataContext.get_current().get_config(_ORDER))
        size = self._pictures.chunk
        parts = [order[number * size : (number + 1) * size] for number in batch["id"]]
        return {"images": self._pictures.read(np.concatenate(parts))}


def stream(images: StreamedImages, config: TrainConfig, plan: WorkerPlan, free_cpus: float) -> tuple[WorkerPlan, dict[str, Any]]:
    """Gives workers room beside them for decoding, and a stream each, which they reach with `fed_by_ray`.

    Args:
        images: to train on.
        config: the job.
        plan: with all CPUs for the workers, beside which Ray Data would wait for ever.
        free_cpus: of the cluster, that nobody uses now.

    Returns:
        The plan with half of the CPUs, or where there are GPUs with one a worker; and further arguments of the trainer.

    Raises:
        ConfigError: if the number of workers changes with the cluster.
    """
    if plan.bounds:
        # Ray Train would take the cores that are left to decoding for room for more workers
        raise ConfigError(f"num_workers: {config.num_workers} changes with the cluster, and streamed images need a number that does not")
    from ray.data import ExecutionOptions, ExecutionResources

    from cifar_ray.data.batches.loader import steps_per_epoch

    cpus, decoding_cpus = share_cpus(plan, free_cpus)
    pictures = images.pictures
    # of an epoch: shares of a step differ by one at most
    largest_share = len(images) // plan.num_workers + steps_per_epoch(len(images), config.batch_size)
    chunks = -(-largest_share // pictures.chunk)
    dataset = ray.data.range(chunks, override_num_blocks=chunks).map_batches(
        _Decode(pictures), batch_size=None, num_cpus=min(1.0, decoding_cpus)
    )
    bytes_a_chunk = pictures.chunk * 3 * pictures.size_px**2
    dataset.context.target_max_block_size = 2 * bytes_a_chunk
    dataset.context.set_config(_FINGERPRINT, images.fingerprint)
    dataset.context.raise_original_map_exception = True  # else its type is lost on the way
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    limits = ExecutionResources(cpu=decoding_cpus, object_store_memory=_CHUNKS_AHEAD * bytes_a_chunk)
    options = ExecutionOptions(resource_limits=limits, preserve_order=True)
    ingest = {"datasets": {_NAME: dataset}, "dataset_config": train.DataConfig(datasets_to_split=[], execution_options=options)}
    return dataclasses.replace(plan, cpus=cpus), ingest


def share_cpus(plan: WorkerPlan, free: float) -> tuple[float, float]:
    """Divides a worker's part of the free CPUs into those it computes with, whole ones if more than one, and those that decode for it."""
    share = free / plan.num_workers
    cpus = min(1.0, share / 2) if plan.use_gpu else min(plan.cpus, share / 2)
    cpus = float(int(cpus)) if cpus >= 1 else int(cpus * 100) / 100
    return cpus, int((share - cpus) * 100) / 100


def fed_by_ray(splits: StreamedSplits) -> StreamedSplits:
    """Inside a worker: the same splits, but training images are decoded by Ray Data, ahead of their use.

    Raises:
        DataError: if the driver has other images, whose numbers would mean nothing here.
    """
    shard = train.get_dataset_shard(_NAME)
    if shard.get_context().get_config(_FINGERPRINT) != splits.train.fingerprint:
        raise DataError(f"{splits.train.pictures.root}: the pictures differ between nodes, or changed just now; copy them, and run again")

    def feed(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
        shard.get_context().set_config(_ORDER, ray.put(rows))
        try:
            for block in shard.iter_batches(batch_size=None, prefetch_batches=1):
                yield block["images"]
        except RayTaskError as error:
            if not isinstance(error.cause, DataError):
                raise
            raise DataError(str(error.cause).partition("\n")[0]) from None  # Ray Data adds lines on retries

    return StreamedSplits(splits.name, dataclasses.replace(splits.train, feed=feed), splits.val, splits.test)

"""Decode streamed images on the cluster's free CPUs with Ray Data, in the order in which each worker uses them.

Every worker has its own stream over the same list of chunk numbers. In each epoch the worker writes its order of pictures into the
stream's context, where the decoding tasks look up the pictures of a chunk. So order and augmentation equal those of data in memory,
and Ray Data does not shuffle.
Decoding tasks import this module, so it does not import torch. It imports Ray Data, which takes a second, only where needed.
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
from cifar_ray.data.batches.shares import Shard, images_read_per_epoch
from cifar_ray.data.streamed import PictureFiles, StreamedImages, StreamedSplits
from cifar_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cifar_ray.cluster.plan import WorkerPlan

_NAME = "train"
_ORDER, _FINGERPRINT = "cifar_ray.order", "cifar_ray.fingerprint"
DATA_DIFFER = "the pictures differ between hosts or have changed; copy the same ones to every host, then rerun"
_CHUNKS_AHEAD = 8  # maximum number of decoded chunks in the queue of a worker


class _Decode:
    """Ray Data's task: decode the images of a chunk of `size` images, given by its number."""

    def __init__(self, pictures: PictureFiles, size: int) -> None:
        self._pictures, self._size = pictures, size

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.uint8]]:
        from ray.data import DataContext

        order = ray.get(DataContext.get_current().get_config(_ORDER))
        parts = [order[number * self._size : (number + 1) * self._size] for number in batch["id"]]
        return {"images": self._pictures.read(np.concatenate(parts))}


def stream(images: StreamedImages, config: TrainConfig, plan: WorkerPlan, free_cpus: float) -> tuple[WorkerPlan, dict[str, Any]]:
    """Reserve CPUs for decoding, and create one stream per worker; `fed_by_ray` reads it in the worker.

    Args:
        images: the training images.
        config: config of the run.
        plan: plan of the workers; it leaves no CPU for Ray Data, which would wait forever.
        free_cpus: free CPUs of the cluster.

    Returns:
        The plan with at most half of the CPUs, or at most one CPU per worker if there are GPUs; and additional arguments for
        `TorchTrainer`.

    Raises:
        ConfigError: if the number of workers changes with the cluster.
    """
    if plan.bounds:
        # Ray Train would count the cores for decoding as room for more workers
        raise ConfigError(
            f"num_workers: {config.num_workers} is variable, but streamed images need a fixed number; pass --num-workers {plan.bounds[1]}"
        )
    from ray.data import ExecutionOptions, ExecutionResources

    cpus, decoding_cpus = share_cpus(plan, free_cpus)
    pictures = images.pictures
    workers = (Shard(rank, plan.num_workers) for rank in range(plan.num_workers))
    most_read = max(images_read_per_epoch(len(images), config.batch_size, worker, config.augmentation.mixes) for worker in workers)
    chunk = pictures.chunk
    chunks = -(-most_read // chunk)
    dataset = ray.data.range(chunks, override_num_blocks=chunks).map_batches(
        _Decode(pictures, chunk), batch_size=None, num_cpus=min(1.0, decoding_cpus)
    )
    bytes_a_chunk = chunk * 3 * pictures.size_px**2
    dataset.context.target_max_block_size = 2 * bytes_a_chunk
    dataset.context.set_config(_FINGERPRINT, images.fingerprint)
    dataset.context.raise_original_map_exception = True  # keeps the type of the exception
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    limits = ExecutionResources(cpu=decoding_cpus, object_store_memory=_CHUNKS_AHEAD * bytes_a_chunk)
    options = ExecutionOptions(resource_limits=limits, preserve_order=True)
    ingest = {"datasets": {_NAME: dataset}, "dataset_config": train.DataConfig(datasets_to_split=[], execution_options=options)}
    return dataclasses.replace(plan, cpus=cpus), ingest


def share_cpus(plan: WorkerPlan, free: float) -> tuple[float, float]:
    """Divide a worker's share of the free CPUs between training and decoding; training gets whole CPUs if it gets at least one."""
    share = free / plan.num_workers
    cpus = min(1.0, share / 2) if plan.use_gpu else min(plan.cpus, share / 2)
    cpus = float(int(cpus)) if cpus >= 1 else int(cpus * 100) / 100
    return cpus, int((share - cpus) * 100) / 100


def fed_by_ray(splits: StreamedSplits) -> StreamedSplits:
    """In a worker: return the splits with training images that Ray Data decodes ahead of their use.

    Raises:
        DataError: if the driver has other images, so that row numbers would not match.
    """
    shard = train.get_dataset_shard(_NAME)
    if shard.get_context().get_config(_FINGERPRINT) != splits.train.fingerprint:
        root = splits.train.pictures.files.root
        raise DataError(f"{root}: {DATA_DIFFER}")

    def feed(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
        shard.get_context().set_config(_ORDER, ray.put(rows))
        try:
            for block in shard.iter_batches(batch_size=None, prefetch_batches=1):
                yield block["images"]
        except RayTaskError as error:
            if not isinstance(error.cause, DataError):
                raise
            raise DataError(str(error.cause).partition("\n")[0]) from None  # Ray Data adds lines on retries

    fed = dataclasses.replace(splits.train, feed=feed)
    return StreamedSplits(splits.name, fed, splits.val, splits.test, splits.class_descriptions)

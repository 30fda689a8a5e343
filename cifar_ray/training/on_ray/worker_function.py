"""The function that Ray Train runs in each worker process."""

from __future__ import annotations

from typing import Any

from ray import train
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device as get_ray_device

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import StreamedSplits, open_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.errors import DataError
from cifar_ray.training.loop.worker import run_worker
from cifar_ray.training.on_ray.ingest import DATA_DIFFER, fed_by_ray
from cifar_ray.training.records.results import FitResult


def train_worker(job: dict[str, Any]) -> FitResult | None:
    """Train from the newest checkpoint, if there is one; returns `None` after a stop command.

    Raises:
        DataError: if the driver has other images or labels, so that workers would disagree on the number of steps.
    """
    config = parse_config(TrainConfig, job["config"])
    context = train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    prepare_process(job["threads"])
    job["probe"].check(config.storage, f"runs/{config.name}")
    splits = open_splits(config)
    if isinstance(splits, StreamedSplits):
        splits = fed_by_ray(splits)
    elif job["fingerprint"] not in ("", splits.fingerprint):
        raise DataError(f"{config.data_dir or splits.name}: {DATA_DIFFER}")
    return run_worker(config, splits, job["channel"], get_ray_device(), shard, broadcast_from_rank_zero)

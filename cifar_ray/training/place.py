"""Where a run trains: in this process, or on Ray's workers."""

from __future__ import annotations

import torch

from cifar_ray.cluster.need import needs_cluster
from cifar_ray.cluster.process import usable_cores
from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import StreamedImages, TrainingSplits
from cifar_ray.errors import ConfigError
from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import TrainedRun
from cifar_ray.training.records.run_folder import Run


def trains_on_ray(config: TrainConfig, splits: TrainingSplits) -> bool:
    """Whether the training loop runs on a Ray cluster.

    Raises:
        ConfigError: if `config.cluster` does not fit the number of workers or the size of the data.
    """
    is_streamed = isinstance(splits.train, StreamedImages)
    if is_streamed and config.cluster == "local":
        raise ConfigError(
            "--cluster local: the pictures exceed the memory, and Ray Data decodes them; leave out --cluster, or raise --data-memory"
        )
    return needs_cluster(config.cluster, config.worker_range, torch.cuda.device_count()) or is_streamed


def describe_place(config: TrainConfig, splits: TrainingSplits) -> str:
    """Describe for the user where a run trains."""
    if not trains_on_ray(config, splits):
        return f"in this process, on {_describe_hardware()}"
    why = ", which decodes pictures that exceed the memory" if isinstance(splits.train, StreamedImages) else ""
    where = "" if config.cluster in ("auto", "start", "local") else f" at {config.cluster}"
    return f"on a Ray cluster{where}{why}"


def train_run(run: Run, splits: TrainingSplits, progress: Progress) -> TrainedRun:
    """Train in this process or on Ray, see `trains_on_ray`. Arguments and errors are those of `train_in_process` and `train_on_ray`."""
    if not trains_on_ray(run.config, splits):
        from cifar_ray.training.in_process import train_in_process

        return train_in_process(run, splits, progress)
    from cifar_ray.training.on_ray.ray_trainer import train_on_ray  # imports Ray, which takes more than a second

    return train_on_ray(run, progress, splits.train if isinstance(splits.train, StreamedImages) else None)


def _describe_hardware() -> str:
    if torch.cuda.is_available():
        return f"one GPU ({torch.cuda.get_device_name(0)})"
    cores = usable_cores()
    return "1 CPU core" if cores == 1 else f"{cores} CPU cores"

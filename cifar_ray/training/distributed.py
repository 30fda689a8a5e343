"""Runs the training loop on Ray Train: resources, workers, checkpoints to shared storage, progress back to the driver."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch import get_device as get_ray_device
from ray.util.queue import Empty, Queue
from safetensors.torch import load as parse_weights
from safetensors.torch import save_file as write_weights

from cifar_ray.compute import prepare_process
from cifar_ray.config import TrainConfig, parse_config, to_yaml
from cifar_ray.data import StreamedImages, StreamedSplits, open_splits
from cifar_ray.data.loader import Shard
from cifar_ray.errors import CifarRayError, ConfigError, ResourceError, TrainingError
from cifar_ray.storage import FileTree
from cifar_ray.training import history
from cifar_ray.training.loop import Weights, fit
from cifar_ray.training.progress import Progress
from cifar_ray.training.reports import EpochReport, FitResult
from cifar_ray.training.start import load_parent
from cifar_ray.training.stream import fed_by_ray, stream

WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "epoch.json"

_STEP_INTERVAL_S = 0.2  # between two messages about steps
POLL_INTERVAL_S = "0.2"  # Ray's default of 2 s would hold up short epochs
_LEAST_CPUS = 0.05


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        name: of the run.
        path: of its folder, in the file system of the storage.
        result: what the workers found.
        history: a report an epoch.
        weights: of the best epoch, on the CPU.
    """

    name: str
    path: str
    result: FitResult
    history: list[EpochReport]
    weights: Weights


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each gets."""

    num_workers: int
    cpus: float
    use_gpu: bool
    note: str | None = None

    def scaling_config(self) -> train.ScalingConfig:
        """The same in Ray's words."""
        resources = {"CPU": self.cpus} | ({"GPU": 1} if self.use_gpu else {})
        return train.ScalingConfig(num_workers=self.num_workers, use_gpu=self.use_gpu, resources_per_worker=resources)


def plan_workers(num_workers: int | None, nodes: int, total: dict[str, float], available: dict[str, float]) -> WorkerPlan:
    """Fits the workers into the cluster, or says at once that they do not fit.

    Args:
        num_workers: asked for; `None` takes one a GPU, or one with all free CPUs.
        nodes: hosts in the cluster; on one host workers may share cores.
        total: resources of the cluster, as Ray names them.
        available: those that nobody uses now.

    Raises:
        ResourceError: if there are fewer GPUs or CPUs than needed.
    """
    gpus, cpus = int(available.get("GPU", 0)), available.get("CPU", 0.0)
    use_gpu = total.get("GPU", 0) >= 1
    workers = num_workers or (max(1, gpus) if use_gpu else 1)
    if use_gpu and workers > gpus:
        raise ResourceError(f"--num-workers {workers}: the cluster has {total['GPU']:g} GPUs, {gpus} of them free")
    if cpus < _LEAST_CPUS * workers:
        raise ResourceError(
            f"--num-workers {workers}: the cluster has {total.get('CPU', 0):g} CPUs, {cpus:g} of them free; stop other jobs or ask for less"
        )
    share = cpus / workers
    if share >= 1:
        return WorkerPlan(workers, float(int(share)) if nodes == 1 else 1.0, use_gpu)
    if nodes > 1:
        raise ResourceError(f"--num-workers {workers}: the cluster of {nodes} hosts has {total['CPU']:g} CPUs, {cpus:g} of them free")
    share = int(share * 100) / 100
    return WorkerPlan(
        workers, share, use_gpu, f"{workers} workers share {cpus:g} CPU cores: {share:g} of a core each, so expect no speed-up"
    )


def train_on_ray(config: TrainConfig, progress: Progress, streamed: StreamedImages | None = None) -> TrainedRun:
    """Trains through Ray Train and keeps config, history and the best and last checkpoints in `<storage>/runs/<name>`.

    Connects to a running cluster, else starts one on this machine and stops it at the end.

    Args:
        config: the whole job, with a run name.
        progress: told what happens.
        streamed: the training images, where they are not held in memory.

    Raises:
        ConfigError: if a run of that name exists.
        ResourceError: if the cluster cannot hold the workers.
        TrainingError: if the run failed; the message holds the workers' reason.
        KeyboardInterrupt: after Ctrl-C, once the workers have stopped.
    """
    assert config.name is not None  # noqa: S101
    runs = FileTree(config.storage, "runs")
    if config.name in runs.folders():
        raise ConfigError(f"name: run {config.name!r} exists in {config.storage}/runs; choose another --name")
    with ray_cluster():
        plan = plan_workers(config.num_workers, alive_nodes(), ray.cluster_resources(), ray.available_resources())
        ingest: dict[str, Any] = {}
        if streamed is not None:
            plan, ingest = stream(streamed, config, plan, ray.available_resources())
        if plan.note:
            progress.on_message(plan.note)
        runs.replace(f"{config.name}/config.yaml", to_yaml(config).encode())
        reports: list[EpochReport] = []
        try:
            with _listening(progress, reports) as queue:
                result = _run_trainer(config, plan, queue, runs, ingest)
        finally:
            if reports:
                _write_history(runs, config.name, reports)
        outcome: FitResult = result.return_value
        return TrainedRun(config.name, runs.path(config.name), outcome, reports, _best_weights(result, outcome.best_epoch))


def _run_trainer(config: TrainConfig, plan: WorkerPlan, queue: Queue, runs: FileTree, ingest: dict[str, Any]) -> train.Result:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json") | {"stream": "always" if ingest else "never"},  # not decided anew on each node
            "queue": queue,
            "threads": max(1, int(plan.cpus)),
        },
        torch_config=TorchConfig(backend="nccl" if plan.use_gpu else "gloo"),
        scaling_config=plan.scaling_config(),
        **ingest,
        run_config=train.RunConfig(
            name=config.name,
            storage_path=runs.path(),
            storage_filesystem=runs.file_system,
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0),
            # `selected` is highest for the best epoch so far; Ray keeps the last checkpoint besides
            checkpoint_config=train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="selected"),
        ),
    )
    previous = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit:  # Ray's answer to Ctrl-C
        raise KeyboardInterrupt from None
    except train.TrainingFailedError as error:
        raise _reason(error) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, previous)


def train_worker(job: dict[str, Any]) -> FitResult:
    """What each worker runs: data, loop, and a report with a checkpoint after each epoch."""
    config = parse_config(TrainConfig, job["config"])
    queue: Queue = job["queue"]
    context = train.get_context()
    rank = context.get_world_rank()
    prepare_process(job["threads"])
    last_message_s = 0.0

    def on_step(epoch: int, done: int, steps: int) -> None:
        nonlocal last_message_s
        if rank == 0 and (done == steps or time.monotonic() - last_message_s > _STEP_INTERVAL_S):
            last_message_s = time.monotonic()
            queue.put(("step", (epoch, done, steps)))

    def on_epoch(report: EpochReport, weights: Weights) -> None:
        metrics = report.figures() | {"selected": report.epoch if report.improved else 0}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                write_weights({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, Path(folder, WEIGHTS_FILE))
                Path(folder, STATE_FILE).write_text(json.dumps(metrics))
                checkpoint = train.Checkpoint.from_directory(folder)
            train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"epoch-{report.epoch:04d}")
        if rank == 0:
            queue.put(("epoch", report))

    splits = open_splits(config)
    if isinstance(splits, StreamedSplits):
        splits = fed_by_ray(splits)
    return fit(
        config,
        splits,
        device=get_ray_device(),
        shard=Shard(rank, context.get_world_size()),
        on_step=on_step,
        on_epoch=on_epoch,
        parent=load_parent(config),
    )


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A connection to a running cluster, or a cluster on this machine for the time of the run."""
    if ray.is_initialized():
        yield
        return
    # nobody takes this machine away with a warning, as clouds do, and the process that listens for it takes seconds to start
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def alive_nodes() -> int:
    """Hosts in the cluster."""
    return sum(node["Alive"] for node in ray.nodes())


@contextmanager
def _listening(progress: Progress, reports: list[EpochReport]) -> Iterator[Queue]:
    """Hands what rank 0 puts into a queue to `progress`, in a thread, since the trainer keeps the main one."""
    queue = Queue(actor_options={"num_cpus": 0})
    finished = threading.Event()

    def listen() -> None:
        while True:
            try:
                kind, content = queue.get(timeout=_STEP_INTERVAL_S)
            except Empty:
                if finished.is_set():
                    return
                continue
            if kind == "step":
                progress.on_step(*content)
            else:
                reports.append(content)
                progress.on_epoch(content)

    thread = threading.Thread(target=listen, name="training progress", daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        finished.set()
        thread.join()
        queue.shutdown()


def _best_weights(result: train.Result, epoch: int) -> Weights:
    """Weights of one epoch's checkpoint, from the storage."""
    for checkpoint, metrics in result.best_checkpoints or []:
        if metrics["epoch"] == epoch:
            with checkpoint.filesystem.open_input_stream(f"{checkpoint.path}/{WEIGHTS_FILE}") as stream:
                return parse_weights(stream.read())
    raise TrainingError(f"run {result.path}: the checkpoint of epoch {epoch}, the best, is gone")


def _write_history(runs: FileTree, name: str, reports: list[EpochReport]) -> None:
    runs.replace(f"{name}/history.csv", history.to_csv(reports))
    runs.replace(f"{name}/history.json", history.to_json(reports))
    runs.replace(f"{name}/curves.png", history.to_png(reports, name))


def _reason(error: train.TrainingFailedError) -> CifarRayError:
    """Our own error where a worker raised one, else one line about the first failure."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, CifarRayError):
                return cause
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    first = str(failures[0] if failures else error).strip().splitlines()
    return TrainingError(f"training failed: {first[-1] if first else type(error).__name__}")

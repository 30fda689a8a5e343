"""Runs the training loop on Ray Train, from the driver: resources, cluster, progress, signals, errors."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from cifar_ray.cluster.connection import ray_cluster
from cifar_ray.cluster.plan import WorkerPlan, nodes_alive, plan_when_there
from cifar_ray.cluster.signals import Signals
from cifar_ray.config import TrainConfig
from cifar_ray.data import StreamedImages
from cifar_ray.errors import CifarRayError, Interrupted, TrainingError
from cifar_ray.storage import FileTree
from cifar_ray.storage.probe import Mark
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.loop.trainer import Weights
from cifar_ray.training.on_ray.channel import Line, listening
from cifar_ray.training.on_ray.controller_callbacks import Changes, UserErrors, own_error
from cifar_ray.training.on_ray.ingest import stream
from cifar_ray.training.on_ray.worker_function import train_worker
from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import EpochReport, FitResult
from cifar_ray.training.records.run_folder import Run
from cifar_ray.training.records.run_log import RunLog

POLL_INTERVAL_S = "0.5"  # Ray's default of 2 s would hold up short runs; each look takes a little of a core from the training
_START_S, _NEW_HOST_S = 60, 900  # until workers have their places; as long as an autoscaler may take for a host that replaces a lost one
# Where their number changes, Ray asks for as many as it thinks there are: with a lost host for half a minute more, so it asks up to thrice
_FEWER_S, _STALE_COUNTS = 15, 3


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        name: of the run.
        path: of its folder, in the file system of the storage.
        result: what the workers found.
        history: a report an epoch.
        weights: of the best epoch, on the CPU.
        restarts: how often workers were lost and training went on with new ones.
        repeated_steps: how many were done again for it.
        workers: epoch and step, counted from 1, at which workers began, and how many there were.
    """

    name: str
    path: str
    result: FitResult
    history: list[EpochReport]
    weights: Weights
    restarts: int = 0
    repeated_steps: int = 0
    workers: Sequence[tuple[int, int, int]] = ()


def train_on_ray(run: Run, progress: Progress, streamed: StreamedImages | None = None) -> TrainedRun:
    """Trains through Ray Train, from the run's newest checkpoint if there is one, and keeps config, history and checkpoints in its folder.

    Connects to a running cluster, else starts one on this machine and stops it at the end.

    Args:
        run: new or unfinished.
        progress: told what happens.
        streamed: the training images, where they are not held in memory.

    Raises:
        ResourceError: if the cluster cannot hold the workers, and nothing adds hosts to it.
        TrainingError: if the run failed; the message holds the workers' reason.
        Interrupted: after Ctrl-C or SIGTERM, once the workers have saved their state and stopped.
    """
    config, log = run.config, RunLog(progress)
    with Signals() as signals, ray_cluster():
        signals.install()
        plan = plan_when_there(config.worker_range, progress.on_message)
        ingest: dict[str, Any] = {}
        if streamed is not None:
            plan, ingest = stream(streamed, config, plan, ray.available_resources())
        if plan.note:
            progress.on_message(plan.note)
        mark = run.begin()
        try:
            with listening(log.hear) as line:
                signals.ask_with(partial(_ask_to_stop, line, progress, log))
                result: FitResult | None = _fit(_trainer(config, plan, line, run, mark, ingest)).return_value
        except Interrupted as stop:
            raise Interrupted(f"run {run.name} ended at once; go on with: {run.command()}", stop.signal_number) from None
        finally:
            if log.reports:
                run.write_history(log.reports)
    if result is None:
        assert signals.received is not None, "nothing else stops workers early"  # noqa: S101
        raise Interrupted(f"run {run.name} is saved; go on with: {run.command()}", signals.received)
    weights = _best_weights(run, result.best_epoch)
    return TrainedRun(run.name, run.files.path(), result, log.reports, weights, log.restarts, log.repeated_steps, log.workers)


def _ask_to_stop(line: Line, progress: Progress, log: RunLog, number: int) -> None:
    if log.waits:
        raise Interrupted("nothing to save", number)
    progress.on_message("saving and stopping; again to stop at once")
    line.ask_to_stop()


def _trainer(config: TrainConfig, plan: WorkerPlan, line: Line, run: Run, mark: Mark, ingest: dict[str, Any]) -> TorchTrainer:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    if len(nodes_alive()) == 1 and plan.bounds is None:
        # nobody takes it away with a warning, as clouds do, and the process that listens for it takes seconds to start
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    start_s = _FEWER_S if plan.bounds else _NEW_HOST_S if plan.grows else _START_S
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(config.worker_timeout_s)
    runs = FileTree(config.storage, "runs")
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json") | {"stream": "always" if ingest else "never"},  # not decided anew on each node
            "line": line,
            "mark": mark,
            "threads": max(1, int(plan.cpus)),
        },
        torch_config=TorchConfig(backend="nccl" if plan.use_gpu else "gloo"),
        scaling_config=plan.scaling_config(),
        **ingest,
        # Ray is given no checkpoints to keep: it trusts one file for all of them, and would delete those that we may have to go back to
        run_config=train.RunConfig(
            name=run.name,
            storage_path=runs.path(),
            storage_filesystem=runs.file_system,
            failure_config=train.FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=config.max_failures * (_STALE_COUNTS if plan.bounds else 1),
            ),
            callbacks=[UserErrors(), Changes(line, config.worker_timeout_s)],
        ),
    )


def _fit(trainer: TorchTrainer) -> train.Result:
    """In a thread of its own, since Ray would take over Ctrl-C in the main one, and end the workers before they can save."""
    outcome: Future[train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:  # whatever it is, it is for the other thread
            outcome.set_exception(error)

    threading.Thread(target=fit, name="trainer", daemon=True).start()
    try:
        return outcome.result()
    except train.TrainingFailedError as error:
        raise _reason(error) from None


def _best_weights(run: Run, epoch: int) -> Weights:
    """Those that the last checkpoint holds as the best, on the CPU."""
    newest = run.checkpoints.newest()
    if newest is not None:
        snapshot = Snapshot.from_bytes(newest[1], torch.device("cpu"))
        if snapshot.best_epoch == epoch:
            weights: Weights = snapshot.state["kept"]
            return weights
    raise TrainingError(f"run {run.name}: its last checkpoint is gone; the same command makes it again")


def _reason(error: train.TrainingFailedError) -> CifarRayError:
    """Our own error where a worker raised one, else one line about the first failure."""
    failures = [*getattr(error, "worker_failures", {}).values(), *filter(None, [getattr(error, "controller_failure", None)])]
    for failure in failures:
        if found := own_error(failure):
            return found
    first = str(failures[0] if failures else error).strip().splitlines()
    return TrainingError(f"training failed: {first[-1] if first else type(error).__name__}")

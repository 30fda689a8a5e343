"""Run the training loop on Ray Train, from the driver: cluster, workers, events, signals, errors."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from cifar_ray.cluster.connection import ray_cluster
from cifar_ray.cluster.failures import unwrap
from cifar_ray.cluster.hosts import alive_hosts
from cifar_ray.cluster.plan import Cluster, WorkerPlan, plan_when_there
from cifar_ray.cluster.private import start_coordinator, without_processes_of_train
from cifar_ray.cluster.signals import Signals
from cifar_ray.config import TrainConfig
from cifar_ray.data import StreamedImages
from cifar_ray.errors import Interrupted, TrainingError
from cifar_ray.storage import FileTree
from cifar_ray.storage.probe import StorageProbe
from cifar_ray.training.loop.snapshot import best_weights
from cifar_ray.training.on_ray.channel import Channel, open_channel
from cifar_ray.training.on_ray.controller_callbacks import create_callbacks
from cifar_ray.training.on_ray.ingest import stream
from cifar_ray.training.on_ray.worker_function import train_worker
from cifar_ray.training.records.progress import Progress
from cifar_ray.training.records.results import FitResult, TrainedRun
from cifar_ray.training.records.run_folder import Run
from cifar_ray.training.records.run_log import RunLog

POLL_INTERVAL_S = "0.5"  # Ray's default of 2 s would delay short runs; each poll takes a little processor time from the training
_START_S, _NEW_HOST_S = 60, 900  # timeouts for placing workers; an autoscaler may need long for a new host
# After a change, Ray starts as many workers as it believes to fit. It counts a lost host for 30 s more, so up to three starts fail.
_FEWER_S, _STALE_COUNTS = 15, 3


def train_on_ray(run: Run, progress: Progress, streamed: StreamedImages | None = None) -> TrainedRun:
    """Train with Ray Train, from the run's newest checkpoint if there is one; write config, history and checkpoints to its folder.

    It connects to a running cluster, or starts one on this machine and stops it at the end.

    Args:
        run: new or unfinished.
        progress: receives the events of the run.
        streamed: the training images, if they are streamed.

    Raises:
        ResourceError: if the cluster has too few resources and no autoscaler.
        TrainingError: if the run failed; the message gives the reason.
        Interrupted: after Ctrl-C or SIGTERM, once the workers have saved their state and stopped.
    """
    config, log = run.config, RunLog(progress)
    progress.on_task("starting Ray and its workers", 0)
    with Signals() as signals, ray_cluster(config.cluster) as is_own, without_processes_of_train(cleaner=is_own, datasets=streamed is None):
        signals.install()
        start_coordinator()
        plan = plan_when_there(config.worker_range, progress.on_message)
        ingest: dict[str, Any] = {}
        if streamed is not None:
            plan, ingest = stream(streamed, config, plan, Cluster.now().free("CPU"))
        if plan.note:
            progress.on_message(plan.note)
        probe = run.begin()
        with log.recording(run), open_channel(log.handle) as channel:
            signals.ask_with(partial(_request_stop, channel, progress, log))
            result: FitResult | None = _fit(_create_trainer(config, plan, channel, run, probe, ingest)).return_value
    return log.end(run, result, signals.received, best_weights)


def _request_stop(channel: Channel, progress: Progress, log: RunLog, number: int) -> None:
    if log.waits:
        raise Interrupted("nothing to save", number)
    progress.on_message("saving and stopping (press Ctrl-C again to stop immediately)")
    channel.request_stop()


def _create_trainer(
    config: TrainConfig, plan: WorkerPlan, channel: Channel, run: Run, probe: StorageProbe, ingest: dict[str, Any]
) -> TorchTrainer:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    if len(alive_hosts()) == 1 and plan.bounds is None:
        # a single host gets no preemption warning, and the process that listens for one takes seconds to start
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    start_s = _FEWER_S if plan.bounds else _NEW_HOST_S if plan.grows else _START_S
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(config.worker_timeout_s)
    runs = FileTree(config.storage, "runs")
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json")
            | {"stream": "always" if ingest else "never"},  # the driver's decision, so that the nodes do not decide differently
            "channel": channel,
            "probe": probe,
            "fingerprint": run.fingerprint,
            "threads": plan.threads,
        },
        torch_config=TorchConfig(backend="nccl" if plan.use_gpu else "gloo"),
        scaling_config=plan.scaling_config(),
        **ingest,
        # Checkpoints are ours, not Ray Train's: it records all of them in one file, and would delete some that may still be needed
        run_config=train.RunConfig(
            name=run.name,
            storage_path=runs.path(),
            storage_filesystem=runs.file_system,
            failure_config=train.FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=config.max_failures * (_STALE_COUNTS if plan.bounds else 1),
            ),
            callbacks=create_callbacks(channel, config.worker_timeout_s),
        ),
    )


def _fit(trainer: TorchTrainer) -> train.Result:
    """Run `trainer.fit` in a separate thread: in the main thread, Ray would handle Ctrl-C and stop the workers before they save."""
    outcome: Future[train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:  # the main thread raises it again
            outcome.set_exception(error)

    threading.Thread(target=fit, name="trainer", daemon=True).start()
    try:
        return outcome.result()
    except train.TrainingFailedError as error:
        raise unwrap(error, lambda reason: TrainingError(f"training failed: {reason}")) from None

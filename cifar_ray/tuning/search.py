"""Run a search on Ray Tune: plan parallel trials, record results, repeat the leaders, and clean up."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cifar_ray.cluster.connection import ray_cluster
from cifar_ray.cluster.failures import last_line
from cifar_ray.cluster.hosts import check_shared_storage
from cifar_ray.cluster.plan import Cluster, WorkerPlan, await_release, plan_workers
from cifar_ray.config import TrainConfig
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.errors import ResourceError
from cifar_ray.storage import FileTree
from cifar_ray.storage.probe import StorageProbe
from cifar_ray.tuning.algorithms import create_repeater, create_scheduler, create_searcher
from cifar_ray.tuning.record import OUT_OF_TIME, Record, Trial
from cifar_ray.tuning.search_job import DATA_FILE
from cifar_ray.tuning.space import SearchSpace
from cifar_ray.tuning.trial import DIVERGED, REPORT_FIELDS, TrialJob, config_key, release_workers, run_trial

TRIALS_FOLDER = "trials"
_RAY_FOLDER = "ray-"
_SEARCH_SHARE = 0.85  # of the time budget; the rest is for repeats
_DRIVER_CPUS = 0.01  # CPU share of a trial whose workers are separate processes


class Listener(Protocol):
    """Receives the events of a search, in the process of the search."""

    def on_message(self, text: str) -> None:
        """Show a message to the user."""

    def on_trial(self, record: Record, trial: Trial) -> None:
        """A trial started, completed an epoch, or ended."""

    def on_tick(self, record: Record) -> None:
        """Called many times per second."""


def run_search(
    fixed: TrainConfig, search: SearchConfig, space: SearchSpace, *, record: Record, files: FileTree, folder: str, listener: Listener
) -> None:
    """Run the remaining trials of a search, and save the record after every epoch of every trial.

    Args:
        fixed: config of all trials, except for the searched fields.
        search: settings of the search.
        space: the search space.
        record: results so far; it is updated.
        files: files of the search.
        folder: folder of the search, relative to the storage.
        listener: receives the events of the search.

    Raises:
        ResourceError: if the cluster has too few resources for a trial.
        StoreError: if the hosts do not share the storage.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the trials have stopped and the record is saved.
    """
    budget_s = search.time_budget_s
    # part of the budget is reserved for repeats of the leaders
    search_s = None if budget_s is None else budget_s * (_SEARCH_SHARE if search.confirm else 1)
    samples_left = record.num_samples - len(record.settled())  # 0 must not reach Tune, where it means unlimited
    if samples_left <= 0 and not record.to_repeat(search.confirm, 1):
        record.ended = True
        record.save(files)
        return
    writer = _Writer(record, files, listener, fixed.patience)
    with ray_cluster(fixed.cluster), _quiet_tune():
        before = Cluster.now()
        concurrent, plan = plan_trials(search, dataclasses.replace(before, grows=False))
        listener.on_message(_describe(concurrent, plan))
        trials = f"{folder}/{TRIALS_FOLDER}"
        check_shared_storage(StorageProbe.place(FileTree(fixed.storage, trials)), fixed.storage, trials)
        resumed = {config_key(trial.config): trial.folder for trial in [*record.trials, *record.repeats] if trial.status == "interrupted"}
        job = TrialJob(fixed.model_dump(mode="json"), fixed.storage, trials, plan, resumed, (files.read(DATA_FILE) or b"").decode())

        def trial(tune_config: dict[str, Any]) -> None:
            run_trial(tune_config, job)

        def run(searcher: Searcher, scheduler: TrialScheduler, samples: int, until_s: float | None) -> None:
            """Run trials until all have ended, the time budget is used up, or the user interrupts."""
            try:
                tune.run(
                    trial,
                    name="tune",
                    storage_path=files.path(f"{_RAY_FOLDER}{time.time_ns():x}"),
                    storage_filesystem=files.file_system,
                    num_samples=samples,
                    search_alg=searcher,
                    scheduler=scheduler,
                    max_concurrent_trials=concurrent,
                    resources_per_trial=PlacementGroupFactory([job.resources()]),
                    # Consecutive trials share a process, but not with separate workers: a thread of the process still waits for these.
                    reuse_actors=job.in_process,
                    time_budget_s=None if until_s is None else max(1.0, until_s - writer.elapsed_s()),
                    callbacks=[writer],
                    raise_on_failed_trial=False,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                    verbose=0,
                )
            finally:
                for left in record.running():
                    release_workers(files, f"{TRIALS_FOLDER}/{left.folder}")
                over = until_s is not None and writer.elapsed_s() >= until_s
                record.settle("stopped" if over else "interrupted", OUT_OF_TIME if over else "")
                writer.save()
                await_release(before)

        def is_over(until_s: float | None) -> bool:
            return until_s is not None and writer.elapsed_s() >= until_s

        try:
            if samples_left > 0 and not is_over(search_s):
                run(create_searcher(fixed, search, space, record), create_scheduler(search, fixed.epochs, record), samples_left, search_s)
            if len(record.settled()) >= record.num_samples or is_over(search_s):
                record.ended = True
                while not is_over(budget_s) and (leaders := record.to_repeat(search.confirm, concurrent)):
                    listener.on_message(_describe_repeats(leaders))
                    run(create_repeater(leaders, search), FIFOScheduler(), len(leaders), budget_s)
                    if any(repeat.status == "interrupted" for repeat in record.repeats):
                        record.ended = False
                        break
        finally:
            writer.save()
            _clean_up(files, record)
    if not record.ended:
        raise KeyboardInterrupt


def plan_trials(search: SearchConfig, cluster: Cluster) -> tuple[int, WorkerPlan]:
    """Number of parallel trials, and resources of the workers of each trial, so that no trial waits for workers.

    Args:
        search: settings of the search.
        cluster: current resources of the cluster.

    Raises:
        ResourceError: if the cluster has too few resources.
    """
    workers = search.workers_per_trial
    units = int(cluster.free("GPU" if cluster.has_gpus else "CPU"))
    most = max(1, units // workers) if search.max_concurrent == "auto" else search.max_concurrent
    most = min(most, search.num_samples)
    fewest = 1 if search.max_concurrent == "auto" else most
    for concurrent in range(most, fewest - 1, -1):
        drivers_cpus = _DRIVER_CPUS * concurrent if workers > 1 else 0
        try:
            plan = plan_workers((concurrent * workers, concurrent * workers), cluster.without(drivers_cpus))
        except ResourceError as error:
            if concurrent == fewest:
                asked = f"{concurrent} trials at a time of {workers} workers"
                raise ResourceError(str(error).replace(f"--num-workers {concurrent * workers}", asked)) from None
        else:
            return concurrent, dataclasses.replace(plan, num_workers=workers, note=None)
    raise AssertionError("most ≥ fewest")


class _Writer(tune.Callback):  # type: ignore[misc]
    """Records the events of Tune, and passes them on to the listener."""

    def __init__(self, record: Record, files: FileTree, listener: Listener, patience: int | None) -> None:
        self._record, self._files, self._listener, self._patience = record, files, listener, patience
        self._before_s, self._started = record.elapsed_s, time.monotonic()

    def elapsed_s(self) -> float:
        """Total time of all invocations of the search."""
        return self._before_s + time.monotonic() - self._started

    def save(self) -> None:
        self._record.elapsed_s = self.elapsed_s()
        self._record.save(self._files)

    def _changed(self, trial: Trial) -> None:
        self.save()
        self._listener.on_trial(self._record, trial)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._changed(self._record.trial(trial.trial_id, trial.config))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        known = self._record.trial(trial.trial_id, trial.config)
        if DIVERGED in result:
            known.status, known.reason = "diverged", result[DIVERGED]
        elif "train_loss" in result:
            known.add({name: result[name] for name in REPORT_FIELDS if name in result})
        self._changed(known)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known = self._record.trial(trial.trial_id, trial.config)
        if known.status == "running":
            known.status = "finished" if known.is_over(self._record.max_epochs, self._patience) else "stopped"
        release_workers(self._files, f"{TRIALS_FOLDER}/{known.folder}")
        self._changed(known)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known = self._record.trial(trial.trial_id, trial.config)
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        known.status, known.reason = "failed", last_line(text, with_class=False) or "no reason given"
        self._files.replace(f"errors/trial-{known.number}.txt", text.encode())
        release_workers(self._files, f"{TRIALS_FOLDER}/{known.folder}")
        self._changed(known)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._listener.on_tick(self._record)


def _clean_up(files: FileTree, record: Record) -> None:
    """Remove Tune's files, which a resumed search does not need, and after a complete search also the snapshots of trials."""
    unneeded = [folder for folder in files.folders() if folder.startswith(_RAY_FOLDER) or (record.ended and folder == TRIALS_FOLDER)]
    for folder in unneeded:
        with suppress(OSError):  # an ending process may still write into the folder
            files.file_system.delete_dir(files.path(folder))


def _describe(concurrent: int, plan: WorkerPlan) -> str:
    device = "1 GPU" if plan.use_gpu else f"{plan.cpus:g} CPU core{'s' * (plan.cpus != 1)}"
    trials = "1 trial" if concurrent == 1 else f"{concurrent} trials"
    workers = "1 worker" if plan.num_workers == 1 else f"{plan.num_workers} workers"
    return f"running {trials} at a time; per trial {workers}, per worker {device}"


def _describe_repeats(leaders: list[Trial]) -> str:
    numbers = ", ".join(str(trial.number) for trial in leaders)
    return f"repeating with another seed, to rule out chance: trial{'s' * (len(leaders) > 1)} {numbers}"


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Turn off Tune's own output, handle SIGTERM like Ctrl-C, and restore all settings and signal handlers at the end."""
    settings = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    before = {name: os.environ.get(name) for name in settings}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    in_main_thread = threading.current_thread() is threading.main_thread()
    os.environ.update(settings)
    log, level = logging.getLogger("ray.tune"), logging.getLogger("ray.tune").level
    log.setLevel(logging.CRITICAL)
    if in_main_thread:
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        if in_main_thread:
            for number, handler in handlers.items():
                signal.signal(number, handler)

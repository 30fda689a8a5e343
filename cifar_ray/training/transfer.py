"""Train on pretrained features: a probe, then fine-tuning from the probe if it is worth the time; the better model is saved."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from cifar_ray.cluster.need import needs_cluster
from cifar_ray.cluster.process import prepare_process
from cifar_ray.cluster.signals import Signals
from cifar_ray.config import ResizePolicy, StartConfig, TrainConfig, parse_config
from cifar_ray.config.base import seconds
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.streamed import StreamedSplits, TrainingSplits
from cifar_ray.data.task_progress import StartTask
from cifar_ray.errors import Interrupted, TrainingError, advising_on_memory
from cifar_ray.metrics.score import Score
from cifar_ray.storage import FileTree
from cifar_ray.store.bundle import MANIFEST_FILE, encode
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.place import train_run
from cifar_ray.training.probe.extraction import ComputeHere, Opener
from cifar_ray.training.probe.linear_probe import Probe, train_probe
from cifar_ray.training.probe.mirroring import mirroring_harms
from cifar_ray.training.probe.tail import Tail, TailTrainer
from cifar_ray.training.records.results import TrainedRun
from cifar_ray.training.records.run_folder import Run
from cifar_ray.training.save_model import describe
from cifar_ray.training.steps.micro_batches import memory_advice
from cifar_ray.training.tail_finetuning import finetune_tail, open_tail, tail_memory_advice, with_one_view
from cifar_ray.training.weights.initial_network import load_parent

if TYPE_CHECKING:
    from cifar_ray.training.records.progress import Progress

POLICIES: tuple[ResizePolicy, ...] = ("squash", "crop", "pad")
PROBE_FOLDER = "probe"

_FINETUNE_FILE = "finetune.yaml"
_GPU_BUDGET_S = 600.0
_STAGE_DECAY = 0.8
_LEAST_EPOCHS = 2
_TIMED_STEPS = 2
_SHARE_OF_BUDGET = 0.9  # the rest is for evaluation


def choose_resize_policy(
    config: TrainConfig, open_splits: Callable[[TrainConfig, StartTask], TrainingSplits], progress: StartTask
) -> tuple[TrainConfig, str]:
    """Compare pad, crop and squash by cross-validation of a probe on the training images.

    Returns:
        The config with the best policy (smallest cross-entropy), and one line with the figures for the user.
    """
    losses: dict[str, tuple[float, float]] = {}
    for policy in POLICIES:
        candidate = config.model_copy(update={"resize_policy": policy, "views": 1})
        fitted = train_probe(candidate, open_splits(candidate, progress), progress, held_out_parts=False).fitted
        losses[policy] = fitted.loss, fitted.score
    best = min(losses, key=lambda policy: losses[policy][0])
    figures = ", ".join(f"{policy} {100 * score:.1f} %" for policy, (_, score) in losses.items())
    name = "mAP" if config.task == "multi-label" else "accuracy"
    return config.model_copy(update={"resize_policy": best}), f"resize policy {best}: cross-validated {name} {figures}"


def train_transfer(run: Run, splits: TrainingSplits, progress: Progress) -> TrainedRun:
    """Train by `config.method`: `probe`, `finetune` or `auto`.

    Args:
        run: new or unfinished; an unfinished run repeats the probe, whose features are cached, and resumes the fine-tuning.
        splits: the data set.
        progress: receives the progress.

    Raises:
        CifarRayError: see `train_probe` and `train_run`.
    """
    config = run.config
    prepare_process()
    run.begin()
    with Signals():
        try:
            with _open_workers(config, progress) as open_view:
                trained, mirror = _probe(run, splits, progress, open_view)
            planned = None if config.method == "probe" else _plan_finetuning(run, trained, splits, progress, mirror)
            if planned is None:
                return trained
            progress.on_plan(planned.config.epochs)
            if planned.split_network is not None:
                tuned = finetune_tail(run, planned.config, trained, splits, planned.split_network, progress)
                return _better(config, trained, tuned, splits, progress)
        except Interrupted as stop:
            raise Interrupted(
                f"run {run.name} stopped; features and finished epochs are saved; resume it with: {run.command()}", stop.signal_number
            ) from None
    tuned = train_run(run.with_config(planned.config), splits, progress)
    return _better(config, trained, tuned, splits, progress)


def _open_workers(config: TrainConfig, progress: Progress) -> AbstractContextManager[Opener]:
    """Choose where features are computed: in this process, or on Ray workers.

    Ray is used if several workers or a cluster are requested, or if this machine has several GPUs.

    Raises:
        ConfigError: if several workers are requested in one process.
    """
    num_workers = config.worker_range[0] if config.worker_range else max(1, torch.cuda.device_count())
    one_is_enough = num_workers == 1 and config.cluster == "auto"  # even if this host belongs to a cluster
    if one_is_enough or not needs_cluster(config.cluster, config.worker_range, num_workers):
        return nullcontext(ComputeHere)
    from cifar_ray.training.on_ray.feature_workers import feature_workers

    workers = "1 worker" if num_workers == 1 else f"{num_workers} workers"
    progress.on_message(f"features are computed by {workers} on Ray")
    return feature_workers(num_workers, config.cluster)


def _probe(run: Run, splits: TrainingSplits, progress: Progress, open_view: Opener) -> tuple[TrainedRun, bool]:
    """The trained probe, and whether pictures may be mirrored."""
    config = run.config
    mirror = config.augmentation.flip != "none"
    uses_mirroring = config.views > 1 or config.method == "finetune" or (config.method == "auto" and _budget_s(config) > 0)
    if mirror and uses_mirroring and mirroring_harms(config, splits, progress.on_task, open_view):
        progress.on_message("mirrored pictures look like another class: views and augmentation do without mirroring")
        mirror = False
    probe = train_probe(config, splits, progress.on_task, mirror=mirror, open_view=open_view)
    progress.on_message(describe_probe(probe, splits))
    run.write_history([probe.report])
    return TrainedRun(run.name, run.files.path(), probe.result, [probe.report], probe.weights), mirror


def describe_probe(probe: Probe, splits: TrainingSplits) -> str:
    """One line with the figures of a probe."""
    metrics, fitted = probe.result.metrics, probe.fitted
    counts = {"cv": len(fitted.rows)} | {name: len(part) for name, part in splits}
    scores = {name: score for name, count in counts.items() if (score := Score.find(metrics, name, count))}
    parts = [f"{'cross-validated' if name == 'cv' else name} {score}" for name, score in scores.items()]
    return f"probe: {', '.join(parts)} in {probe.result.train_seconds:.0f} s"


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How to fine-tune.

    Attributes:
        config: config of the fine-tuning.
        split_network: the network and its two parts, to train only the last stages on this CPU; `None` trains all stages with `train_run`.
    """

    config: TrainConfig
    split_network: tuple[nn.Module, Tail] | None


def _plan_finetuning(run: Run, trained: TrainedRun, splits: TrainingSplits, progress: Progress, mirror: bool) -> _Plan | None:
    """Plan the fine-tuning; a resumed run takes the plan from its folder. `None` if there is no fine-tuning, or it would take too long."""
    config = run.config
    on_cpu = not torch.cuda.is_available() and config.max_workers == 1
    split_network = open_tail(trained, splits) if on_cpu else None
    begun = run.extra_config(_FINETUNE_FILE)
    if begun is not None:
        return _Plan(begun, split_network)
    budget_s = _budget_s(config)
    if config.method == "auto" and not budget_s:
        progress.on_message("fine-tuning is left out on a CPU; --time-budget 15m tries it")
        return None
    if config.method == "auto" and splits.val is None:
        progress.on_message("fine-tuning is left out: there are no validation images to compare it with the probe")
        return None
    save_probe(run.files, trained, config, splits)
    planned = finetuning_config(config, f"runs/{run.name}", mirror=mirror)
    if config.method == "auto":
        epoch_s = _epoch_s(planned, trained, splits, split_network)
        epochs = min(planned.epochs, int(_SHARE_OF_BUDGET * budget_s / epoch_s))
        if epochs < _LEAST_EPOCHS:
            progress.on_message(f"fine-tuning is left out: {_LEAST_EPOCHS} epochs would take {_LEAST_EPOCHS * epoch_s / 60:.1f} min")
            return None
        progress.on_message(f"fine-tuning for {epochs} epochs, about {epochs * epoch_s / 60:.1f} min")
        schedule = planned.schedule.model_copy(update={"warmup_epochs": min(planned.schedule.warmup_epochs, epochs / 4)})
        planned = planned.model_copy(update={"epochs": epochs, "schedule": schedule})
    run.save_extra_config(_FINETUNE_FILE, planned)
    return _Plan(planned, split_network)


def _epoch_s(config: TrainConfig, trained: TrainedRun, splits: TrainingSplits, split_network: tuple[nn.Module, Tail] | None) -> float:
    """Duration of an epoch, seconds, estimated from a few steps in this process."""
    if split_network is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with advising_on_memory(memory_advice(config, device, splits.train.image_size_px), TrainingError):
            return len(splits.train) / _images_per_s(config, splits, device)
    about = trained.result.normalization
    assert isinstance(splits.train, ImageDataset)  # noqa: S101
    with advising_on_memory(tail_memory_advice(config), TrainingError):
        return TailTrainer(split_network[1], config, splits.train, about.mean, about.std).estimate_epoch_s(config.epochs)


def _budget_s(config: TrainConfig) -> float:
    if config.time_budget == "auto":
        return _GPU_BUDGET_S if torch.cuda.is_available() else 0.0
    return seconds(config.time_budget)


def save_probe(files: FileTree, trained: TrainedRun, config: TrainConfig, splits: TrainingSplits) -> None:
    """Write the probe with one view as a bundle into the folder `probe`, from which the workers of the fine-tuning load it."""
    single = with_one_view(trained)
    bundle = encode(describe(single, config, splits), single.weights, {})
    for name in sorted(bundle, key=lambda name: name == MANIFEST_FILE):  # the manifest commits the bundle
        files.replace(f"{PROBE_FOLDER}/{name}", bundle[name])


def finetuning_config(config: TrainConfig, folder: str, *, mirror: bool) -> TrainConfig:
    """The config of fine-tuning from a probe.

    Args:
        config: config of the probe.
        folder: folder, relative to the storage, in which `save_probe` wrote the probe.
        mirror: whether pictures may be mirrored.
    """
    start = StartConfig(model=f"{config.storage}/{folder}/{PROBE_FOLDER}", stage_decay=_STAGE_DECAY)
    augmentation = config.augmentation if mirror else config.augmentation.model_copy(update={"flip": "none"})
    values = config.model_dump() | {"method": "scratch", "pretrained": "none", "views": 1, "time_budget": "auto"}
    return parse_config(TrainConfig, values | {"start": start.model_dump(), "augmentation": augmentation.model_dump()})


def _images_per_s(config: TrainConfig, splits: TrainingSplits, device: torch.device) -> float:
    """Training images per second, measured over two steps in this process; with GPUs, times the number of workers."""
    rows = np.arange(min(len(splits.train), (1 + _TIMED_STEPS) * config.batch_size))
    part = splits if isinstance(splits, StreamedSplits) else DatasetSplits(splits.name, splits.train.subset(rows), None, None)
    trainer = Trainer(config, part, device, Shard(), load_parent(config))
    seen, started = 0, time.perf_counter()
    for number, step in enumerate(trainer.loader.epoch(0)):
        trainer.train_step(step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number == 0:
            started = time.perf_counter()  # the first step is slower: it allocates memory
        else:
            seen += step.global_size
        if number == _TIMED_STEPS:
            break
    return max(1, seen) / (time.perf_counter() - started) * (config.max_workers if device.type == "cuda" else 1)


def _better(config: TrainConfig, probe: TrainedRun, tuned: TrainedRun, splits: TrainingSplits, progress: Progress) -> TrainedRun:
    """The run with the better validation accuracy or mAP; always the fine-tuned one for the method `finetune`."""
    of_probe = {f"probe_{name}": value for name, value in probe.result.metrics.items() if name.endswith(("_accuracy", "_map"))}
    # the parent is the probe of the same run, so the manifest needs no checksum of the parent
    result = dataclasses.replace(tuned.result, metrics=tuned.result.metrics | of_probe, parent_weights_sha256=None)
    tuned = dataclasses.replace(tuned, result=result)
    if splits.val is None:
        return tuned
    scores = [score for run in (probe, tuned) if (score := Score.find(run.result.metrics, "val", len(splits.val)))]
    keeps_tuned = config.method == "finetune" or scores[1].value > scores[0].value
    kept = "fine-tuned network" if keeps_tuned else "probe"
    progress.on_message(f"validation {scores[0].name}: probe {scores[0]}, fine-tuned {scores[1]}; saved: {kept}")
    return tuned if keeps_tuned else dataclasses.replace(probe, history=[*probe.history, *tuned.history])

"""Train on pretrained features: a probe, then fine-tuning from its head where it pays, and the better of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from cifar_ray.config import ResizePolicy, StartConfig, TrainConfig, parse_config
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.data.streamed import StreamedImages, StreamedSplits, TrainingSplits
from cifar_ray.data.task_progress import StartTask
from cifar_ray.metrics.intervals import describe_accuracy
from cifar_ray.store.bundle import MANIFEST_FILE, encode
from cifar_ray.training.probe.mirroring import mirroring_harms
from cifar_ray.training.probe.probe import Probe, train_probe
from cifar_ray.training.records.results import TrainedRun, Weights
from cifar_ray.training.records.run_folder import Run
from cifar_ray.training.save_model import describe

if TYPE_CHECKING:
    from cifar_ray.training.records.progress import Progress

POLICIES: tuple[ResizePolicy, ...] = ("squash", "crop", "pad")
PROBE_FOLDER = "probe"

_FINETUNE_FILE = "finetune.yaml"
_GPU_BUDGET_S = 600.0
_STAGE_DECAY = 0.8
_LEAST_EPOCHS = 2
_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_TIMED_STEPS = 2


def choose_resize_policy(
    config: TrainConfig, open_splits: Callable[[TrainConfig, StartTask], TrainingSplits], progress: StartTask
) -> tuple[TrainConfig, str]:
    """Compare pad, crop and squash by cross-validation of a probe on the training images.

    Returns:
        The config with the best policy, and one line with the figures.
    """
    losses: dict[str, tuple[float, float]] = {}
    for policy in POLICIES:
        candidate = config.model_copy(update={"resize_policy": policy, "views": 1})
        fitted = train_probe(candidate, open_splits(candidate, progress), progress, held_out_parts=False).fitted
        losses[policy] = fitted.loss, fitted.accuracy
    best = min(losses, key=lambda policy: losses[policy][0])
    figures = ", ".join(f"{policy} {accuracy:.1%}" for policy, (_, accuracy) in losses.items())
    return config.model_copy(update={"resize_policy": best}), f"resize policy {best}: cross-validated accuracy {figures}"


def train_transfer(run: Run, splits: TrainingSplits, progress: Progress) -> TrainedRun:
    """Train by `config.method`: `probe`, `finetune` or `auto`.

    Args:
        run: new or unfinished; an unfinished one repeats its probe, whose features are cached, and resumes its fine-tuning.
        splits: the data set.
        progress: receives the progress.

    Raises:
        CifarRayError: see `train_probe` and `train_on_ray`.
    """
    config = run.config
    run.begin()
    mirror = config.augmentation.flip != "none"
    if mirror and (config.views > 1 or config.method != "probe") and mirroring_harms(config, splits, progress.on_task):
        progress.on_message("mirrored pictures look like another class: views and augmentation do without mirroring")
        mirror = False
    probe = train_probe(config, splits, progress.on_task, mirror=mirror)
    progress.on_message(_describe_probe(probe, splits))
    run.write_history([probe.report])
    trained = TrainedRun(run.name, run.files.path(), probe.result, [probe.report], probe.weights)
    finetuning = None if config.method == "probe" else _plan_finetuning(run, trained, splits, progress, mirror)
    if finetuning is None:
        return trained
    from cifar_ray.training.on_ray.ray_trainer import train_on_ray

    tuned = train_on_ray(run.with_config(finetuning), progress, splits.train if isinstance(splits.train, StreamedImages) else None)
    return _better(config, trained, tuned, splits, progress)


def _describe_probe(probe: Probe, splits: TrainingSplits) -> str:
    metrics, fitted = probe.result.metrics, probe.fitted
    parts = [f"cross-validated {describe_accuracy(fitted.accuracy, len(fitted.rows))}"]
    parts += [
        f"{name} {describe_accuracy(metrics[f'{name}_accuracy'], len(part))}" for name, part in splits if f"{name}_accuracy" in metrics
    ]
    return f"probe: {', '.join(parts)} in {probe.result.train_seconds:.0f} s"


def _plan_finetuning(run: Run, trained: TrainedRun, splits: TrainingSplits, progress: Progress, mirror: bool) -> TrainConfig | None:
    """The config of fine-tuning, as in the run folder if it has begun before; `None` if it does not pay."""
    config = run.config
    begun = run.extra_config(_FINETUNE_FILE)
    if begun is not None:
        return begun
    budget_s = _budget_s(config)
    if config.method == "auto" and not budget_s:
        progress.on_message("fine-tuning is left out on a CPU; --time-budget 15m tries it")
        return None
    if config.method == "auto" and splits.val is None:
        progress.on_message("fine-tuning is left out: there are no validation images to compare it with the probe")
        return None
    _save_probe(run, trained, splits)
    planned = _finetuning_config(run, mirror)
    if config.method == "auto":
        rate = _images_per_s(planned, splits)
        epochs = min(planned.epochs, int(budget_s * rate / len(splits.train)))
        if epochs < _LEAST_EPOCHS:
            needed = _LEAST_EPOCHS * len(splits.train) / rate
            progress.on_message(f"fine-tuning is left out: {_LEAST_EPOCHS} epochs would take {needed / 60:.0f} min; see --time-budget")
            return None
        progress.on_message(f"fine-tuning for {epochs} epochs, about {epochs * len(splits.train) / rate / 60:.1f} min")
        warmup = min(planned.schedule.warmup_epochs, epochs / 4)
        planned = planned.model_copy(update={"epochs": epochs, "schedule": planned.schedule.model_copy(update={"warmup_epochs": warmup})})
    run.save_extra_config(_FINETUNE_FILE, planned)
    return planned


def _budget_s(config: TrainConfig) -> float:
    if config.time_budget == "auto":
        return _GPU_BUDGET_S if torch.cuda.is_available() else 0.0
    return float(config.time_budget[:-1]) * _UNITS_S[config.time_budget[-1]]


def _save_probe(run: Run, trained: TrainedRun, splits: TrainingSplits) -> None:
    """Write the probe as a bundle into the run folder, where the workers of the fine-tuning find it; one view is enough for them."""
    prefix = "network." if "views" in trained.result.architecture.arguments else ""
    weights: Weights = {name.removeprefix(prefix): tensor for name, tensor in trained.weights.items()}
    kept = {key: value for key, value in trained.result.architecture.arguments.items() if key not in ("views", "mirror_views")}
    result = dataclasses.replace(trained.result, architecture=trained.result.architecture.model_copy(update={"arguments": kept}))
    manifest = describe(dataclasses.replace(trained, result=result), run.config, splits)
    files = encode(manifest, weights, {})
    for name in sorted(files, key=lambda name: name == MANIFEST_FILE):  # the manifest commits the bundle
        run.files.replace(f"{PROBE_FOLDER}/{name}", files[name])


def _finetuning_config(run: Run, mirror: bool) -> TrainConfig:
    config = run.config
    start = StartConfig(model=f"{config.storage}/runs/{run.name}/{PROBE_FOLDER}", stage_decay=_STAGE_DECAY)
    augmentation = config.augmentation if mirror else config.augmentation.model_copy(update={"flip": "none"})
    values = config.model_dump() | {"method": "scratch", "pretrained": "none", "views": 1, "time_budget": "auto"}
    return parse_config(TrainConfig, values | {"start": start.model_dump(), "augmentation": augmentation.model_dump()})


def _images_per_s(config: TrainConfig, splits: TrainingSplits) -> float:
    """Training images per second, from two steps in this process, times the number of workers."""
    import time

    from cifar_ray.data.batches.loader import Shard
    from cifar_ray.training.loop.trainer import Trainer
    from cifar_ray.training.weights.initial_network import load_parent

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = np.arange(min(len(splits.train), (1 + _TIMED_STEPS) * config.batch_size))
    part = splits if isinstance(splits, StreamedSplits) else DatasetSplits(splits.name, splits.train.subset(rows), None, None)
    trainer = Trainer(config, part, device, Shard(), load_parent(config))
    seen, started = 0, time.perf_counter()
    for number, step in enumerate(trainer.loader.epoch(0)):
        trainer.train_step(step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number == 0:
            started = time.perf_counter()  # the first step allocates
        else:
            seen += step.global_size
        if number == _TIMED_STEPS:
            break
    return max(1, seen) / (time.perf_counter() - started) * (config.max_workers if device.type == "cuda" else 1)


def _better(config: TrainConfig, probe: TrainedRun, tuned: TrainedRun, splits: TrainingSplits, progress: Progress) -> TrainedRun:
    """The run with the better validation accuracy; always the fine-tuned one for the method `finetune`."""
    result = dataclasses.replace(tuned.result, parent_weights_sha256=None)  # its parent is part of the same run
    result.metrics.update({f"probe_{name}": value for name, value in probe.result.metrics.items() if name.endswith("_accuracy")})
    tuned = dataclasses.replace(tuned, result=result)
    if splits.val is None:
        return tuned
    figures = [run.result.metrics["val_accuracy"] for run in (probe, tuned)]
    keeps_tuned = config.method == "finetune" or figures[1] > figures[0]
    shown = [describe_accuracy(figure, len(splits.val)) for figure in figures]
    kept = "fine-tuned network" if keeps_tuned else "probe"
    progress.on_message(f"validation accuracy: probe {shown[0]}, fine-tuned {shown[1]}; kept: {kept}")
    return tuned if keeps_tuned else dataclasses.replace(probe, history=[*probe.history, *tuned.history])

"""A training job: name the run, train it on Ray, and save its model with its figures."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cifar_ray.config import TrainConfig, parse_config, storage_flag
from cifar_ray.data import open_splits
from cifar_ray.data.batches.shares import check_batch_size
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.data.task_progress import StartTask
from cifar_ray.training.class_balance import advise, describe_figures

if TYPE_CHECKING:
    from cifar_ray.training.records.progress import Progress
    from cifar_ray.training.records.results import FitResult, SavedModel, TrainedRun
    from cifar_ray.training.records.run_folder import Run


@dataclass(frozen=True)
class JobResult:
    """Result of a training job.

    Attributes:
        config: config of the run.
        run: the finished run.
        saved: its model in the store.
    """

    config: TrainConfig
    run: TrainedRun
    saved: SavedModel

    def summary(self) -> str:
        """Summary for the user: the run, its figures, the model, and the command that serves it."""
        lines = [_describe_result(self.run.path, self.run.result, self.saved.bundle.manifest.image_counts)]
        if self.run.restarts:
            lines.append(f"restarts after failed workers: {self.run.restarts}; repeated steps: {self.run.repeated_steps}")
        if len({count for _, _, count in self.run.workers}) > 1:
            lines.append("workers " + ", ".join(f"{count} from step {step} of epoch {epoch}" for epoch, step, count in self.run.workers))
        bundle = self.saved.bundle
        verdict = "promoted to production" if self.saved.promoted else "saved, not promoted"
        lines.append(f"model  {bundle.reference}: {verdict} ({self.saved.reason})")
        if self.saved.pictures and self.config.dataset == "folder":
            pictures = f"{self.saved.pictures:,} of your test pictures"
            lines.append(f"gallery  the model contains {pictures} for the server's page; --gallery 0 leaves them out")
        if any(name.endswith("balanced_accuracy") for name in self.run.result.metrics):  # some class may be much worse than the others
            lines.append(f"look   cifar-ray evaluate {bundle.reference}{storage_flag(self.config.storage)}")
        if not self.saved.promoted:
            lines.append(f"promote anyway  cifar-ray store promote {bundle.reference}{storage_flag(self.config.storage)}")
        model = bundle.name if self.saved.promoted else bundle.reference
        lines.append(f"serve  serve run deployments:app model={model} storage={self.config.storage}")
        return "\n".join(lines)


def load_data(config: TrainConfig, progress: StartTask, on_message: Callable[[str], object]) -> tuple[TrainConfig, TrainingSplits]:
    """Load the data of a config, choose the resize policy if the config leaves it open, and check the batch size.

    Args:
        config: settings of the training.
        progress: starts a progress bar for each task.
        on_message: receives the figures of the compared policies.

    Returns:
        The config with its resize policy, and the data.

    Raises:
        DataError: see `open_splits`; or if the batch size exceeds the number of training images.
    """
    if config.resize_policy == "auto":
        from cifar_ray.training.transfer import choose_resize_policy

        config, comparison = choose_resize_policy(config, open_splits, progress)
        on_message(comparison)
    splits = open_splits(config, progress)
    if config.method == "scratch":
        check_batch_size(config.batch_size, len(splits.train), config.max_workers)
    return config, splits


def with_name(config: TrainConfig, splits: TrainingSplits) -> TrainConfig:
    """Add a run name and the task of the labels to a config; drop the fields that a command adds to `TrainConfig`.

    Raises:
        ConfigError: if a setting is for the other task.
    """
    values: dict[str, Any] = config.model_dump(include=set(TrainConfig.model_fields))
    values["task"] = "single-label" if splits.train.labels.ndim == 1 else "multi-label"
    # four random digits distinguish runs that start in the same second
    values["name"] = config.name or f"{config.save_as or splits.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    return parse_config(TrainConfig, values)


def run(config: TrainConfig, splits: TrainingSplits, progress: Progress, track: str = "", resume: str = "auto") -> JobResult:
    """Train a model, save it to the store, and promote it if it is good enough.

    Args:
        config: a config with a name, from `with_name`.
        splits: the data set of the config.
        progress: receives the progress; closed at the end.
        track: trackers that also log the run, as in `--track`.
        resume: whether to resume an unfinished run, as in `--resume`.

    Raises:
        CifarRayError: see `Run`, `create_tracker`, `train_on_ray` and `save_model`.
    """
    from cifar_ray.training.records.run_folder import Run, unfinished_twin

    job = Run(config, resume, splits.fingerprint)
    if not job.is_resumed and (twin := unfinished_twin(config, splits.fingerprint)):
        progress.on_message(
            f"run {twin.name} with the same settings is unfinished; if it was interrupted, continue it with: {twin.command()}"
        )
    config = job.config
    progress.on_message(_describe_start(config, splits))
    if advice := advise(config, splits):
        progress.on_message(advice)
    if config.pretrained != "none" and not config.start:
        from cifar_ray.training.weights.pretrained import find_pretrained

        find_pretrained(config.model, config.pretrained)  # before Ray starts: errors show early, and this host downloads only once

    from cifar_ray.training.records.tracking import TrackedProgress, create_tracker
    from cifar_ray.training.save_model import save_model

    tracker = create_tracker(track, config.storage)
    finished = False
    try:
        tracker.on_start(config, splits)
        trained = _train(job, splits, TrackedProgress(progress, tracker))
        progress.close()
        progress.on_task("saving the model", 0)
        saved = save_model(trained, config, splits, resumed=job.is_resumed)
        repeated = {"restarts": trained.restarts, "repeated_steps": trained.repeated_steps, "workers": trained.workers}
        job.finish(model=saved.bundle.reference, tries=job.checkpoints.attempts(), **repeated)
        tracker.on_end(trained, saved)
        finished = True
    finally:
        progress.close()
        tracker.close(finished=finished)
    return JobResult(config, trained, saved)


def _train(job: Run, splits: TrainingSplits, progress: Progress) -> TrainedRun:
    if job.config.method != "scratch":
        from cifar_ray.training.transfer import train_transfer

        return train_transfer(job, splits, progress)
    from cifar_ray.training.place import train_run

    return train_run(job, splits, progress)


def _describe_start(config: TrainConfig, splits: TrainingSplits) -> str:
    counts = ", ".join(f"{len(part):,} {name}" for name, part in splits)
    shape = f"{splits.train.num_classes} classes, {splits.train.image_size_px} px"
    origin = f"model {config.model} from {config.start.model}" if config.start else f"recipe {config.recipe}, model {config.model}"
    how = {"auto": "method auto: a probe, then fine-tuning if it is worth its time"}.get(config.method, f"method {config.method}")
    if config.method == "scratch":
        from cifar_ray.training.place import describe_place

        how = f"{_describe_rate(config)}; {describe_place(config, splits)}"
    return f"run {config.name}: {splits.name} ({counts}; {shape}), {origin}\n{how}"


def _describe_rate(config: TrainConfig) -> str:
    from cifar_ray.training.loop.optimizers import peak_learning_rate

    optimizer = config.optimizer
    rate = peak_learning_rate(optimizer, config.batch_size)
    rule = (
        f"not scaled with batch size {config.batch_size}"
        if optimizer.lr_scaling == "none"
        else f"{optimizer.lr:g} for batch size {optimizer.reference_batch_size}, {optimizer.lr_scaling} scaling to {config.batch_size}"
    )
    return f"{optimizer.name}, peak learning rate {rate:.3g} ({rule})"


def _describe_result(path: str, result: FitResult, image_counts: dict[str, int]) -> str:
    metrics = result.metrics
    return (
        f"run    {path}: {result.train_seconds:.0f} s\n{describe_figures(metrics, image_counts)}\ntrust  {result.trust.describe(metrics)}"
    )

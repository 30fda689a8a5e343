"""A training job: names the run, trains on Ray, and saves the model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import StreamedImages, TrainingSplits

if TYPE_CHECKING:
    from cifar_ray.training.on_ray.ray_trainer import TrainedRun
    from cifar_ray.training.records.progress import Progress
    from cifar_ray.training.records.results import FitResult
    from cifar_ray.training.save_model import Kept


def named(config: TrainConfig, splits: TrainingSplits) -> TrainConfig:
    """The plain config of a run, without what a verb adds to it, and with a name."""
    values: dict[str, Any] = config.model_dump(include=set(TrainConfig.model_fields))
    values["name"] = config.name or f"{config.save_as or splits.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return TrainConfig.model_validate(values)


@dataclass(frozen=True)
class JobResult:
    """A finished job.

    Attributes:
        run: the trained run.
        saved: the model that is now in the store.
        storage: where that is, as the user named it.
    """

    run: TrainedRun
    saved: Kept
    storage: str

    def summary(self) -> str:
        """The lines for the terminal."""
        run, saved = self.run, self.saved
        lines = [_report(run.path, run.result)]
        if run.restarts:
            lines.append(f"losses {run.restarts} of workers; {run.repeated_steps} steps were done again")
        if len({count for _, _, count in run.workers}) > 1:
            lines.append("workers " + ", ".join(f"{count} from step {step} of epoch {epoch}" for epoch, step, count in run.workers))
        verdict = "promoted to production" if saved.promoted else "kept, not promoted"
        lines.append(f"model  {saved.bundle.reference}: {verdict} ({saved.reason})")
        lines.append(f"serve  serve run deployments:app model={saved.bundle.name} storage={self.storage}")
        return "\n".join(lines)


def run(config: TrainConfig, splits: TrainingSplits, progress: Progress, track: str = "", resume: str = "auto") -> JobResult:
    """Trains a model, saves it to the store and promotes it if it earned that.

    Args:
        config: as `named` gives it.
        splits: the data that it names.
        progress: receives the progress, and is closed at the end.
        track: where else the run is logged, as `--track` says.
        resume: whether an unfinished run is resumed, as `--resume` says.

    Raises:
        CifarRayError: see `Run`, `create_tracker`, `train_on_ray` and `keep`.
    """
    from cifar_ray.training.records.run_folder import Run

    job = Run(config, resume, splits.fingerprint)
    progress.on_message(_summary(config, splits))
    if config.pretrained and not config.start:
        from cifar_ray.training.weights.pretrained import imagenet_weights

        imagenet_weights(config.model)  # what cannot be had is told before Ray starts, and one download serves all workers of a host

    from cifar_ray.training.on_ray.ray_trainer import train_on_ray  # Ray takes a second to import: mistakes are told before
    from cifar_ray.training.records.tracking import TrackedProgress, create_tracker
    from cifar_ray.training.save_model import keep

    tracker = create_tracker(track, config.storage)
    finished = False
    try:
        tracker.on_start(config, splits)
        streamed = splits.train if isinstance(splits.train, StreamedImages) else None
        trained = train_on_ray(job, TrackedProgress(progress, tracker), streamed)
        progress.close()
        kept = keep(trained, config, splits, again=job.goes_on)
        repeated = {"restarts": trained.restarts, "repeated_steps": trained.repeated_steps, "workers": trained.workers}
        job.finish(model=kept.bundle.reference, tries=job.checkpoints.tries(), **repeated)
        tracker.on_end(trained, kept)
        finished = True
    finally:
        progress.close()
        tracker.close(finished=finished)
    return JobResult(trained, kept, config.storage)


def _summary(config: TrainConfig, splits: TrainingSplits) -> str:
    counts = ", ".join(f"{len(part):,} {name}" for name, part in splits)
    shape = f"{splits.train.num_classes} classes, {splits.train.image_size_px} px"
    origin = f"model {config.model} from {config.start.model}" if config.start else f"recipe {config.recipe}, model {config.model}"
    return f"run {config.name}: {splits.name} ({counts}; {shape}), {origin}\n{_describe_rate(config)}"


def _describe_rate(config: TrainConfig) -> str:
    from cifar_ray.training.loop.optimizers import peak_learning_rate

    optimizer = config.optimizer
    rate = peak_learning_rate(optimizer, config.batch_size)
    rule = (
        "whatever the batch"
        if optimizer.lr_scaling == "none"
        else f"{optimizer.lr:g} for {optimizer.reference_batch_size} images, scaled by the {optimizer.lr_scaling} rule"
    )
    return f"{optimizer.name} with a peak rate of {rate:.3g} for batches of {config.batch_size} images: {rule}"


def _report(path: str, result: FitResult) -> str:
    metrics = result.metrics
    names = {"val_accuracy": "validation", "test_accuracy": "test", "test_accuracy_tta": "test, views averaged"}
    figures = [f"{label} {metrics[key]:.2%}" for key, label in names.items() if key in metrics]
    accuracy = ", ".join(figures) or "no validation or test images"
    trust = result.trust.describe(result.metrics)
    return f"run    {path}: {result.train_seconds:.0f} s\naccuracy  {accuracy}\ntrust  {trust}"

"""A whole training job as the verbs run it: names the run, trains on Ray, keeps the model, and says how good it is."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import StreamedImages, TrainingSplits

if TYPE_CHECKING:
    from cifar_ray.training.records.results import FitResult
    from cifar_ray.training.save_model import Kept


def named(config: TrainConfig, splits: TrainingSplits) -> TrainConfig:
    """The plain config of a run, without what a verb adds to it, and with a name."""
    values: dict[str, Any] = config.model_dump(include=set(TrainConfig.model_fields))
    values["name"] = config.name or f"{config.save_as or splits.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return TrainConfig.model_validate(values)


def run(config: TrainConfig, splits: TrainingSplits, track: str = "", resume: str = "auto") -> Kept:
    """Trains, keeps, promotes and reports; progress goes to stderr, results to stdout.

    Args:
        config: as `named` gives it.
        splits: the data that it names.
        track: where else the run is logged, as `--track` says.
        resume: whether an unfinished run goes on, as `--resume` says.

    Raises:
        CifarRayError: see `Run`, `create_tracker`, `train_on_ray` and `keep`.
    """
    from cifar_ray.training.records.run_folder import Run

    job = Run(config, resume, splits.fingerprint)
    print(_summary(config, splits), file=sys.stderr)
    if config.pretrained and not config.start:
        from cifar_ray.training.weights.pretrained import imagenet_weights

        imagenet_weights(config.model)  # what cannot be had is told before Ray starts, and one download serves all workers of a host

    from cifar_ray.training.on_ray.ray_trainer import train_on_ray  # Ray takes a second to import: mistakes are told before
    from cifar_ray.training.records.progress import ConsoleProgress
    from cifar_ray.training.records.tracking import TrackedProgress, create_tracker
    from cifar_ray.training.save_model import keep

    progress = ConsoleProgress(config.epochs, len(splits.train))
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
    print(_report(trained.path, trained.result))
    if trained.restarts:
        print(f"losses {trained.restarts} of workers; {trained.repeated_steps} steps were done again")
    if len({count for _, _, count in trained.workers}) > 1:
        print("workers " + ", ".join(f"{count} from step {step} of epoch {epoch}" for epoch, step, count in trained.workers))
    verdict = "promoted to production" if kept.promoted else "kept, not promoted"
    print(f"model  {kept.bundle.reference}: {verdict} ({kept.reason})")
    print(f"serve  serve run deployments:app model={kept.bundle.name} storage={config.storage}")
    return kept


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

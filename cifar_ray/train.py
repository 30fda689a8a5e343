"""`python -m cifar_ray.train`: trains through Ray Train, keeps the model, promotes it if it earned that."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from datetime import datetime

from cifar_ray import cli
from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.data.loader import check_batch_size
from cifar_ray.models import list_models
from cifar_ray.recipes import list_recipes

PROG = "python -m cifar_ray.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the flags say; the command line's own where `argv` is `None`."""
    command = cli.parse_train_command(argv, PROG)
    if command.list_recipes or command.list_models:
        lines = [f"{name:12} {text}" for name, text in list_recipes().items()] if command.list_recipes else list_models()
        print("\n".join(lines))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # decoding, and files that were skipped
    splits = load_splits(command)
    check_batch_size(command.batch_size, len(splits.train), command.num_workers or 1)
    config = _named(command, splits)
    print(_summary(config, splits), file=sys.stderr)

    from cifar_ray.training.distributed import train_on_ray  # Ray takes a second to import: mistakes are told before
    from cifar_ray.training.keep import keep
    from cifar_ray.training.progress import ConsoleProgress

    progress = ConsoleProgress(config.epochs, len(splits.train))
    try:
        run = train_on_ray(config, progress)
    finally:
        progress.close()
    kept = keep(run, config, splits)
    print(_report(run.path, run.result.train_seconds, kept.bundle.manifest.metrics))
    verdict = "promoted to production" if kept.promoted else "kept, not promoted"
    print(f"model  {kept.bundle.reference}: {verdict} ({kept.reason})")
    print(f"serve  serve run deployments:app model={kept.bundle.name} storage={config.storage}")
    return 0


def _named(command: cli.TrainCommand, splits: DatasetSplits) -> TrainConfig:
    """The plain config of the run, with a name."""
    values = command.model_dump(exclude={"config", "list_recipes", "list_models"})
    values["name"] = command.name or f"{command.save_as or splits.name}-{datetime.now():%Y%m%d-%H%M%S}"
    return TrainConfig.model_validate(values)


def _summary(config: TrainConfig, splits: DatasetSplits) -> str:
    counts = ", ".join(f"{len(part):,} {name}" for name, part in splits)
    shape = f"{splits.train.num_classes} classes, {splits.train.image_size_px} px"
    return f"run {config.name}: {splits.name} ({counts}; {shape}), recipe {config.recipe}, model {config.model}"


def _report(path: str, seconds: float, metrics: dict[str, float]) -> str:
    names = {"val_accuracy": "validation", "test_accuracy": "test", "test_accuracy_tta": "test, views averaged"}
    figures = [f"{label} {metrics[key]:.2%}" for key, label in names.items() if key in metrics]
    return f"run    {path}: {seconds:.0f} s\naccuracy  {', '.join(figures) or 'no validation or test images'}"


if __name__ == "__main__":
    sys.exit(cli.run(main))

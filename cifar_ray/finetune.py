"""`python -m cifar_ray.finetune MODEL`: goes on from a model's weights, to other classes or other images, and keeps a new model."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import tyro
from pydantic import Field

from cifar_ray import cli
from cifar_ray.config import (
    FrozenPart,
    Positive,
    ShareOfRate,
    StartConfig,
    TrainConfig,
    default_storage,
    parse_config,
    parse_groups,
    resolve_storage,
)
from cifar_ray.data import open_splits
from cifar_ray.data.batches.loader import check_batch_size
from cifar_ray.errors import ConfigError
from cifar_ray.recipes import default_recipe, get_recipe
from cifar_ray.store import Bundle, load_model
from cifar_ray.training import job

PROG = "python -m cifar_ray.finetune"

_EPOCHS = 3
_LEAST_STEPS = 8  # an epoch
_RATES = ("lr", "head_lr", "bias_lr")


class FinetuneCommand(TrainConfig, cli.Resumable):
    """Goes on from a model's weights on other classes or images, and keeps the result as a new model that names its parent.

    Data, optimizer and seed are those of the parent's own training, at a part of its learning rate; flags change them.
    """

    recipe: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    model: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    start: tyro.conf.Suppress[StartConfig | None] = None
    parent: tyro.conf.Positional[str] = Field(description="NAME, NAME@3, a run or a path: whose weights to begin with")
    freeze: FrozenPart = Field("none", description="what stays as it is: none, backbone (all but the head), or the first N stages")
    stage_decay: ShareOfRate = Field(1.0, description="learning rate of each stage as a share of that of the stage above it")
    rate_factor: Positive = Field(0.1, description="the parent's peak learning rates are multiplied by it; --optimizer.… sets them")


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tunes as the flags say; the command line's own where `argv` is `None`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, parent = parse_command(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # decoding, and files that were skipped
    splits = open_splits(command)
    fitting = _fitting_batch_size(command, len(splits.train), arguments)
    check_batch_size(fitting, len(splits.train), command.max_workers)
    config = job.with_name(command.model_copy(update={"batch_size": fitting}), splits)
    print(_trained_share(config, parent, splits.train.class_names), file=sys.stderr)
    from cifar_ray.training.records.progress import ConsoleProgress

    result = job.run(config, splits, ConsoleProgress(config.epochs, len(splits.train)), command.track, command.resume)
    print(result.summary())
    print(f"parent {parent.reference} is as it was; {result.saved.bundle.reference} can be served beside it")
    return 0


def parse_command(argv: Sequence[str]) -> tuple[FinetuneCommand, Bundle]:
    """The parent's own settings, gentler, then flags over them.

    Raises:
        ConfigError: one line naming the field that is unknown or impossible.
        StoreError: if there is no such parent.
    """
    if not argv or argv[0].startswith("-"):
        if {"-h", "--help"} & set(argv):
            cli.parse(FinetuneCommand, ["--help"], PROG)
        raise ConfigError(f"say first which model to begin with: {PROG} MODEL …")
    flags = cli.peek(argv[1:], ("--storage", "--dataset", "--data-dir", "--rate-factor"))
    storage = resolve_storage(flags.get("storage") or default_storage())
    parent = load_model(argv[0], storage)
    values = _inherited(parent, flags) | {"parent": argv[0], "storage": storage}
    command: FinetuneCommand = cli.parse(FinetuneCommand, argv, PROG, parse_config(FinetuneCommand, values))
    path = resolve_storage(argv[0]) if "/" in argv[0] else None
    start = StartConfig(model=path or parent.reference, freeze=command.freeze, stage_decay=command.stage_decay)
    changes = {"start": start, "model": parent.manifest.architecture.name, "save_as": command.save_as or _name(command, parent)}
    return command.model_copy(update=changes), parent


def _inherited(parent: Bundle, flags: dict[str, str]) -> dict[str, Any]:
    """Settings of the parent's training that hold for its child."""
    manifest, architecture = parent.manifest, parent.manifest.architecture.name
    recipe = get_recipe(default_recipe(None, architecture)).model_dump()
    known = {key: value for key, value in manifest.train_config.items() if key in TrainConfig.model_fields}
    if "dataset" not in known and "dataset" not in flags:
        raise ConfigError(f"{parent.reference} does not say what it was trained on; pass --dataset, and --data-dir for a folder")
    if flags.get("dataset", known.get("dataset")) != known.get("dataset") or "data_dir" in flags:
        known = {key: value for key, value in known.items() if key not in ("dataset", "data_dir", "groups", "stream")}
    values = cli.merge(recipe, known) | flags
    factor = parse_config(FinetuneCommand, {"parent": parent.reference, "rate_factor": flags.get("rate_factor", 0.1)}).rate_factor
    values["optimizer"] |= {name: values["optimizer"][name] * factor for name in _RATES}
    values["schedule"] = {"name": "linear", "warmup_epochs": 0.2}
    own = FinetuneCommand.model_fields
    fresh = ("name", "save_as", "promote", "num_workers", "patience", "precision", "start", "model", "recipe", "test_time_augmentation")
    return {key: value for key, value in values.items() if key in own and key not in fresh} | {
        "epochs": _EPOCHS,
        "image_size": manifest.image_size_px,
        "resize_policy": manifest.resize_policy,
        "test_time_augmentation": values["test_time_augmentation"],
    }


def _name(command: FinetuneCommand, parent: Bundle) -> str | None:
    """Of the new model: the parent's for the same classes of the same data, the groups' for others, else the data set's."""
    if command.groups:
        return _plain("-".join([parent.name, *parse_groups(command.groups)]))
    same_data = command.dataset == parent.manifest.train_config.get("dataset") and command.data_dir == parent.manifest.train_config.get(
        "data_dir"
    )
    return parent.name if same_data else None


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100]


def _fitting_batch_size(command: FinetuneCommand, images: int, argv: Sequence[str]) -> int:
    """The batch size asked for, or the parent's cut to what a small data set needs to make some steps an epoch."""
    if cli.peek(argv, ("--batch-size",)) or command.batch_size <= images // _LEAST_STEPS:
        return command.batch_size
    return 1 << int(math.log2(max(2, images // _LEAST_STEPS)))


def _trained_share(config: TrainConfig, parent: Bundle, class_names: tuple[str, ...]) -> str:
    """How many weights training changes, from the network that it will build."""
    from cifar_ray.models import count_parameters
    from cifar_ray.models.stages import stages
    from cifar_ray.training.weights.initial_network import create_from, freeze

    assert config.start is not None  # noqa: S101
    model = create_from(parent, class_names, config.image_size or parent.manifest.image_size_px, parse_groups(config.groups))
    frozen = freeze(model, config.start)
    everything = sum(parameter.numel() for parameter in model.parameters())
    trained = ", ".join(stage.name for stage in stages(model)[len(frozen) :])
    kept = f"; frozen: {', '.join(stage.name for stage in frozen)}" if frozen else ""
    return f"trains {count_parameters(model):,} of {everything:,} parameters: {trained}{kept}"


if __name__ == "__main__":
    sys.exit(cli.run(main))

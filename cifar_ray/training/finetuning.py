"""What fine-tuning takes from its parent model: settings, name and batch size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from cifar_ray.config import TrainConfig, parse_groups
from cifar_ray.config.merging import merge_settings
from cifar_ray.errors import ConfigError
from cifar_ray.recipes import default_recipe, get_recipe
from cifar_ray.store import Bundle

_EPOCHS = 3
_MIN_STEPS_PER_EPOCH = 8
_RATES = ("lr", "head_lr", "bias_lr")
_DATA_SETTINGS = ("dataset", "data_dir", "groups", "stream")
# Settings of the parent's run that say nothing about its child.
_NOT_INHERITED = ("name", "save_as", "promote", "num_workers", "patience", "precision", "start", "model", "recipe")


def inherited_settings(parent: Bundle, data: Mapping[str, str], rate_factor: float) -> dict[str, Any]:
    """The settings of the parent's training that its child starts from, as values of a `TrainConfig`.

    Args:
        parent: the model to start from.
        data: `dataset` and `data_dir`, where the user gives them. Other data than the parent's reset all settings of the data.
        rate_factor: factor for the peak learning rates.

    Raises:
        ConfigError: if the data set is unknown.
    """
    manifest = parent.manifest
    recipe = get_recipe(default_recipe(None, manifest.architecture.name)).model_dump()
    known = {key: value for key, value in manifest.train_config.items() if key in TrainConfig.model_fields}
    if "dataset" not in known and "dataset" not in data:
        raise ConfigError(f"{parent.reference} does not say what it was trained on; pass --dataset, and --data-dir for a folder")
    if data.get("dataset", known.get("dataset")) != known.get("dataset") or "data_dir" in data:
        known = {key: value for key, value in known.items() if key not in _DATA_SETTINGS}
    values = merge_settings(recipe, known) | dict(data)
    values["optimizer"] |= {name: values["optimizer"][name] * rate_factor for name in _RATES}
    values["schedule"] = {"name": "linear", "warmup_epochs": 0.2}
    values |= {"epochs": _EPOCHS, "image_size": manifest.image_size_px, "resize_policy": manifest.resize_policy}
    return {key: value for key, value in values.items() if key not in _NOT_INHERITED}


def child_name(parent: Bundle, config: TrainConfig) -> str | None:
    """The name of a fine-tuned model.

    Returns:
        The parent's name for the same data, with the names of groups where there are any; `None`, the data set's name, for other data.
    """
    if config.groups:
        name = "-".join([parent.name, *parse_groups(config.groups)])
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100]
    trained = parent.manifest.train_config
    same_data = config.dataset == trained.get("dataset") and config.data_dir == trained.get("data_dir")
    return parent.name if same_data else None


def fit_batch_size(batch_size: int, images: int) -> int:
    """The parent's batch size, reduced to a power of two where a small data set would give too few steps per epoch."""
    if batch_size <= images // _MIN_STEPS_PER_EPOCH:
        return batch_size
    return 1 << int(math.log2(max(2, images // _MIN_STEPS_PER_EPOCH)))


def describe_trained_part(config: TrainConfig, parent: Bundle, class_names: tuple[str, ...]) -> str:
    """A line that says how many parameters training changes, from the network that it will build.

    Args:
        config: of the fine-tuning; its `start` is set.
        parent: the model to start from.
        class_names: of the training images.

    Raises:
        ConfigError: if nothing is left to train.
    """
    from cifar_ray.models import count_parameters
    from cifar_ray.models.stages import stages
    from cifar_ray.training.weights.initial_network import create_from, freeze

    assert config.start is not None  # noqa: S101
    model = create_from(parent, class_names, config.image_size or parent.manifest.image_size_px, parse_groups(config.groups))
    frozen = freeze(model, config.start)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = ", ".join(stage.name for stage in stages(model)[len(frozen) :])
    kept = f"; frozen: {', '.join(stage.name for stage in frozen)}" if frozen else ""
    return f"trains {count_parameters(model):,} of {total:,} parameters: {trained}{kept}"

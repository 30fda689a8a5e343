"""What training begins with: fresh weights, ImageNet's, or those of a bundle, which is fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from cifar_ray.config import StartConfig, TrainConfig, parse_groups
from cifar_ray.data.statistics import ChannelValues
from cifar_ray.data.streamed import TrainingImages, training_mean_std
from cifar_ray.errors import BundleError, ConfigError
from cifar_ray.models import create_model
from cifar_ray.models.stages import Stage, head_name, stages
from cifar_ray.store import Bundle, load_model
from cifar_ray.training.weights.pretrained import IMAGENET_STATISTICS, load_pretrained


def load_parent(config: TrainConfig) -> Bundle | None:
    """The bundle that a job starts from; `None` for fresh weights.

    Raises:
        StoreError: if there is no such model.
        BundleError: if it is damaged.
    """
    return load_model(config.start.model, config.storage) if config.start else None


def input_statistics(config: TrainConfig, train: TrainingImages, parent: Bundle | None) -> tuple[ChannelValues, ChannelValues]:
    """Mean and standard deviation of the channels, for normalisation: what filters learnt holds for inputs scaled as they were."""
    if parent:
        return parent.manifest.channel_mean, parent.manifest.channel_std
    return IMAGENET_STATISTICS if config.pretrained else training_mean_std(train)


def initial_network(config: TrainConfig, train: TrainingImages, parent: Bundle | None) -> nn.Module:
    """The network as training begins with it; what is fresh is drawn from torch's global generator.

    Raises:
        ConfigError, BundleError: see `create_model`, `create_from` and `load_pretrained`.
        DataError: if pretrained weights cannot be had.
    """
    if parent:
        return create_from(parent, train.class_names, train.image_size_px, parse_groups(config.groups))
    model = create_model(config.model, train.num_classes, train.image_size_px)
    if config.pretrained:
        load_pretrained(model, config.model)
    return model


def create_from(parent: Bundle, class_names: Sequence[str], image_size_px: int, groups: Mapping[str, Sequence[str]]) -> nn.Module:
    """Builds a network whose body is the parent's, for other classes.

    A class that the parent knows, or a group of such, begins with the mean of their rows of the parent's head; other rows are fresh,
    drawn from torch's global generator.

    Args:
        parent: whose weights are copied.
        class_names: in the order of the logits.
        image_size_px: side of the images.
        groups: the parent's classes by new name.

    Raises:
        ConfigError: if the parent has no single linear head.
        BundleError: if its weights do not fit its architecture.
    """
    architecture = parent.manifest.architecture
    if architecture.name == "ensemble":
        raise ConfigError(f"{parent.reference} is an ensemble, and only single networks can be fine-tuned; choose one of its members")
    model = create_model(architecture.name, **(architecture.arguments | {"num_classes": len(class_names), "image_size": image_size_px}))
    name, known = head_name(model), parent.manifest.class_names
    weights = dict(parent.weights)
    for part, parameter in model.get_submodule(name).named_parameters():
        rows = parameter.detach().clone()
        for row, class_name in enumerate(class_names):
            members = [known.index(member) for member in groups.get(class_name, (class_name,)) if member in known]
            if members:
                rows[row] = parent.weights[f"{name}.{part}"][members].mean(dim=0)
        weights[f"{name}.{part}"] = rows
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleError(f"{parent.reference}: weights do not fit {architecture.name}: {' '.join(str(error).split())[:300]}") from None
    return model


def freeze(model: nn.Module, start: StartConfig) -> list[Stage]:
    """Stops training the first stages of a network.

    Returns:
        The stages that no longer change; keep them in evaluation mode, or their batch norms would still move.

    Raises:
        ConfigError: if nothing would be left to train.
    """
    parts = stages(model)
    count = {"none": 0, "backbone": len(parts) - 1}.get(start.freeze)
    count = int(start.freeze) if count is None else count
    if count >= len(parts):
        raise ConfigError(f"freeze: {count} of {len(parts)} stages leave nothing to train; there are {', '.join(s.name for s in parts)}")
    for stage in parts[:count]:
        for parameter in stage.parameters():
            parameter.requires_grad_(False)
    return parts[:count]


def rate_factors(model: nn.Module, stage_decay: float) -> dict[torch.nn.Parameter, float]:
    """Shares of the learning rate: 1 for the head, and `stage_decay` times the share above for each stage below it.

    Discriminative fine-tuning (Howard & Ruder 2018, arXiv 1801.06146, section 3.2).
    """
    return {parameter: stage_decay**depth for depth, stage in enumerate(reversed(stages(model))) for parameter in stage.parameters()}

"""Save an ensemble as one bundle: `models.create_model` builds it as `ensemble`, and every reader of bundles can use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cifar_ray.errors import StoreError
from cifar_ray.metrics.label_rules import LabelRules
from cifar_ray.store.bundle import Bundle
from cifar_ray.store.manifest import Architecture, Manifest
from cifar_ray.store.registry import ModelStore

if TYPE_CHECKING:
    import torch

_MUST_AGREE = ("task", "class_names", "image_size_px", "resize_policy")


def save_ensemble(store: ModelStore, name: str, references: Sequence[str]) -> Bundle:
    """Save a new version of `name` that averages the probabilities of its members.

    The ensemble has no metrics until you evaluate it. Data set and library versions come from the first member's manifest.

    Args:
        store: store of the members; the ensemble contains copies, so you may delete a member later.
        name: name of the new model.
        references: at least two members, as in `ModelStore.load`.

    Raises:
        StoreError: for fewer than two members, or if they differ in task, classes, image size or resize policy.
        BundleError: if a member is damaged.
    """
    if len(references) < 2:
        raise StoreError(f"an ensemble needs at least two models, got {len(references)}")
    members = [store.load(reference) for reference in references]
    first = members[0].manifest
    for member in members[1:]:
        for key in _MUST_AGREE:
            if getattr(member.manifest, key) != getattr(first, key):
                raise StoreError(f"{member.reference} and {members[0].reference} have different {key}; choose members with the same {key}")
    arguments = {
        "num_classes": len(first.class_names),
        "image_size": first.image_size_px,
        "members": [member.manifest.architecture.model_dump() for member in members],
        "temperatures": [member.manifest.temperature for member in members],
    }
    rules = [rules for member in members if (rules := member.manifest.rules) is not None]
    if rules:
        arguments["scales"] = [[one.slopes, one.offsets] for one in rules]
    manifest = first.model_copy(
        update={
            "architecture": Architecture(name="ensemble", arguments=arguments),
            "temperature": 1.0,
            "label_rules": _mean_thresholds(rules) if rules else None,
            "abstain_threshold": None,
            "metrics": {},
            "quantization": None,
            "train_config": {"ensemble_of": [member.reference for member in members]},
            "created_at": datetime.now(UTC),
        }
    )
    return store.save(name, manifest, _weights(members))


def _mean_thresholds(rules: Sequence[LabelRules]) -> LabelRules:
    """Rules of an ensemble until it is calibrated: the mean of its members' thresholds, without scaling, which the members already have."""
    plain = LabelRules.plain(len(rules[0].thresholds))
    return dataclasses.replace(
        plain, thresholds=tuple(sum(each) / len(rules) for each in zip(*(one.thresholds for one in rules), strict=True))
    )


def _weights(members: Sequence[Bundle]) -> dict[str, torch.Tensor]:
    import torch

    weights = {f"members.{i}.{key}": tensor for i, member in enumerate(members) for key, tensor in member.weights.items()}
    weights["normalizations"] = torch.tensor([_renormalization(member.manifest, members[0].manifest) for member in members])
    return weights


def _renormalization(member: Manifest, first: Manifest) -> tuple[list[float], list[float]]:
    """Scale and shift of each channel that convert (x − first mean) / first std to (x − mean) / std."""
    channels = list(zip(member.channel_mean, member.channel_std, first.channel_mean, first.channel_std, strict=True))
    scale = [first_std / std for _, std, _, first_std in channels]
    shift = [(first_mean - mean) / std for mean, std, first_mean, _ in channels]
    return scale, shift

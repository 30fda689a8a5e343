"""Import weights from other programs, or from an export, into the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from cifar_ray.config import ResizePolicy
from cifar_ray.errors import BundleError, ConfigError
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models.detect import canonical, detect
from cifar_ray.models.weight_files import read_weights
from cifar_ray.store import Architecture, Bundle, Manifest, ModelStore
from cifar_ray.store.manifest import MANIFEST_KEY

_IMPORTED = "imported"


@dataclass(frozen=True)
class WeightsMetadata:
    """Facts that a state dict does not contain; for `None`, the value of `like` is used, or without `like` the default.

    Attributes:
        class_names: names of the classes, in the order of the logits.
        channel_mean: mean that training subtracted, per channel R, G, B, 0–1; default 0.5.
        channel_std: standard deviation by which training divided, per channel, 0–1; default 0.5.
        image_size_px: side of the images; default 32, or 224 for a ResNet with the large stem.
        resize_policy: policy for other aspect ratios; default `pad`.
        like: manifest of a model with the same classes, normalisation and image size.
    """

    class_names: tuple[str, ...] | None = None
    channel_mean: tuple[float, float, float] | None = None
    channel_std: tuple[float, float, float] | None = None
    image_size_px: int | None = None
    resize_policy: ResizePolicy | None = None
    like: Manifest | None = None

    def __bool__(self) -> bool:
        return self != WeightsMetadata()


def import_weights(store: ModelStore, path: Path, name: str, meaning: WeightsMetadata) -> Bundle:
    """Save a weights file as the next version of `name`, after a check that its network runs and gives finite logits.

    Args:
        store: the store to save to.
        path: a torch state dict (`.pt`, `.pth`; loaded without executing code) or safetensors. A file from `store export --format
            safetensors` contains its manifest.
        name: name of the model.
        meaning: facts that the file does not contain; they override the facts in the file.

    Raises:
        ConfigError: if the file cannot be read, its architecture is unknown, or class names are missing.
        BundleError: if the weights do not match the detected architecture, or the manifest in the file is damaged.
        StoreError: if the store cannot be written.
    """
    weights, manifest = _read(path)
    if manifest is None or meaning:
        weights = weights if manifest else canonical(weights)
        manifest = _describe(weights, path, meaning, manifest)
    candidate = Bundle(manifest, weights, path.name, 1)
    Predictor(candidate, precision="fp32", engine="torch")  # raises if the weights do not match
    return store.save(name, manifest, weights)


def _describe(weights: Mapping[str, Tensor], path: Path, meaning: WeightsMetadata, written: Manifest | None) -> Manifest:
    like = meaning.like or written
    size_px = meaning.image_size_px or (like.image_size_px if like else None)
    if written:
        known = written.architecture
        architecture, arguments = known.name, known.arguments | {"image_size": size_px or written.image_size_px}
    else:
        architecture, arguments = detect(weights, size_px)
    class_names = meaning.class_names or (like.class_names if like else None)
    if class_names is None:
        raise ConfigError(
            f"{path}: found {architecture} with {arguments['num_classes']} classes, but no class names; pass --classes or --like MODEL"
        )
    if len(class_names) != arguments["num_classes"]:
        raise ConfigError(f"{path}: found {architecture} with {arguments['num_classes']} classes, got {len(class_names)} class names")
    return Manifest(
        architecture=Architecture(name=architecture, arguments=arguments),
        class_names=class_names,
        class_descriptions=like.class_descriptions if like and like.class_names == class_names else {},
        task=like.task if like else "single-label",
        image_size_px=arguments["image_size"],
        channel_mean=meaning.channel_mean or (like.channel_mean if like else (0.5, 0.5, 0.5)),
        channel_std=meaning.channel_std or (like.channel_std if like else (0.5, 0.5, 0.5)),
        resize_policy=meaning.resize_policy or (like.resize_policy if like else "pad"),
        dataset_name=like.dataset_name if like else _IMPORTED,
        dataset_fingerprint="",  # the training images are unknown, so figures cannot be compared with other models
        train_config={"imported_from": path.name},
        pretrained=written.pretrained if written else None,
        library_versions={"torch": torch.__version__},
        created_at=datetime.now(UTC),
    )


def _read(path: Path) -> tuple[dict[str, Tensor], Manifest | None]:
    weights, metadata = read_weights(path)
    written = metadata.get(MANIFEST_KEY)
    try:
        return weights, Manifest.model_validate_json(written) if written else None
    except ValidationError:
        raise BundleError(
            f"{path}: the manifest in its header is damaged or from another release; pass --classes or --like MODEL"
        ) from None

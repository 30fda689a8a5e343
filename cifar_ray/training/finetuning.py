"""Settings, name and batch size that fine-tuning inherits from its parent model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cifar_ray.config import TrainConfig, parse_groups
from cifar_ray.config.merging import merge_settings
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import ConfigError
from cifar_ray.recipes import default_recipe, get_recipe
from cifar_ray.store import Bundle

_EPOCHS = 3
_MIN_STEPS_PER_EPOCH = 8
_BATCH = 256
_MIN_BATCH = 16
_RATES = ("lr", "head_lr", "bias_lr")
_DATA_SETTINGS = ("dataset", "data_dir", "columns", "task", "groups", "stream")
# Settings of the parent's run that do not apply to its child.
_NOT_INHERITED = (
    *("name", "save_as", "promote", "num_workers", "patience", "precision", "start", "model", "recipe"),
    *("with_reviews", "reviews_until", "review_weight", "pretrained", "method", "views", "time_budget"),
)


def inherited_settings(parent: Bundle, data: Mapping[str, str], rate_factor: float) -> dict[str, Any]:
    """Settings of the parent's training that its child inherits, as values of a `TrainConfig`.

    Args:
        parent: the model to start from.
        data: `dataset` and `data_dir` from the user, if any. If they differ from the parent's, the child inherits no data setting.
        rate_factor: factor for the peak learning rates.

    Raises:
        ConfigError: if neither `data` nor the parent names a data set.
    """
    manifest = parent.manifest
    recipe = get_recipe(default_recipe(None, manifest.architecture.name)).model_dump()
    known = {key: value for key, value in manifest.train_config.items() if key in TrainConfig.model_fields}
    if "dataset" not in known and "dataset" not in data:
        raise ConfigError(f"{parent.reference} does not name its training data; pass --dataset NAME or --data-dir DIR")
    if data.get("dataset", known.get("dataset")) != known.get("dataset") or "data_dir" in data:
        known = {key: value for key, value in known.items() if key not in _DATA_SETTINGS}
    else:  # keep the parent's split: another seed would put some of its training pictures into the validation split
        known["split_seed"] = known.get("split_seed") or known.get("seed", 0)
    values = merge_settings(recipe, known) | dict(data)
    values["optimizer"] |= {name: values["optimizer"][name] * rate_factor for name in _RATES}
    values["schedule"] = {"name": "linear", "warmup_epochs": 0.2}
    values |= {"epochs": _EPOCHS, "image_size": manifest.image_size_px, "resize_policy": manifest.resize_policy}
    return {key: value for key, value in values.items() if key not in _NOT_INHERITED}


def child_name(parent: Bundle, config: TrainConfig) -> str | None:
    """The name of a fine-tuned model.

    Returns:
        With groups: the parent's name and the names of the groups. Without groups: the parent's name for the same data; `None` for
        other data, so that the model gets the name of its data set.
    """
    if config.groups:
        name = "-".join([parent.name, *parse_groups(config.groups)])
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100]
    trained = parent.manifest.train_config
    same_data = config.dataset == trained.get("dataset") and config.data_dir == trained.get("data_dir")
    return parent.name if same_data else None


def warn_of_overlap(parent: Bundle, config: TrainConfig, splits: TrainingSplits) -> str | None:
    """Warn if the parent may have been trained on the child's validation or test pictures.

    Returns:
        One line; `None` if data and split are the same, the data set is another one, the parent has no fingerprint, or there are groups.
    """
    trained_on = parent.manifest
    is_other = trained_on.dataset_name != splits.name or not trained_on.dataset_fingerprint
    if is_other or config.groups or trained_on.was_trained_on(splits.dataset_fingerprint, splits.test_fingerprint):
        return None  # groups change the labels and therefore the fingerprint, but not the split
    return (
        f"the pictures or their split differ from those of {parent.reference}: it may have been trained on some of the new model's "
        "validation or test pictures, so the new model's accuracy may be too high"
    )


def fit_batch_size(batch_size: int, images: int) -> int:
    """The parent's batch size, reduced to a power of two if a small data set would give too few steps per epoch.

    Unless there are fewer images, the reduction stops at 16, because batch norm over a few images destroys what a network has learnt.
    """
    if batch_size <= images // _MIN_STEPS_PER_EPOCH:
        return batch_size
    wanted = max(_MIN_BATCH, images // _MIN_STEPS_PER_EPOCH)
    return min(batch_size, 1 << int(math.log2(max(2, min(images, wanted)))))


def describe_trained_part(config: TrainConfig, parent: Bundle, class_names: tuple[str, ...]) -> str:
    """Describe in one line which parameters the fine-tuning trains.

    Args:
        config: config of the fine-tuning; its `start` is set.
        parent: the model to start from.
        class_names: classes of the training images.

    Raises:
        ConfigError: if all parameters are frozen.
    """
    from cifar_ray.models import count_parameters
    from cifar_ray.models.stages import stages
    from cifar_ray.training.weights.initial_network import create_from, freeze

    assert config.start is not None  # noqa: S101
    model = create_from(parent, class_names, config.image_size or parent.manifest.image_size_px, parse_groups(config.groups))
    frozen = freeze(model, config.start)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = ", ".join(stage.name for stage in stages(model)[len(frozen) :])
    rest = f"; frozen: {', '.join(stage.name for stage in frozen)}" if frozen else ""
    return f"trains {count_parameters(model):,} of {total:,} parameters: {trained}{rest}"


def compare_on_reviews(bundles: Sequence[Bundle], storage: str) -> str:
    """Accuracy of each model on the reviewed pictures that are held out of training.

    Args:
        bundles: the models, the older one first.
        storage: holds the pictures.

    Returns:
        One line; empty if no reviewed picture of their classes was kept out of training, or the models have different classes, because
        each would be tested on other pictures.

    Raises:
        StoreError: if the storage cannot be read.
    """
    import torch

    from cifar_ray.data.dataset import ImageDataset
    from cifar_ray.data.reviewed import reviewed_images
    from cifar_ray.inference.predictor import Predictor
    from cifar_ray.metrics.intervals import describe_accuracy

    if len({frozenset(bundle.manifest.class_names) for bundle in bundles}) > 1:
        return ""
    texts, count = [], 0
    for bundle in bundles:
        manifest, names = bundle.manifest, bundle.manifest.class_names
        no_labels = np.empty(0, np.int64) if manifest.task == "single-label" else np.empty((0, len(names)), np.uint8)
        like = ImageDataset(np.empty((0, manifest.image_size_px, manifest.image_size_px, 3), np.uint8), no_labels, names)
        held_out = reviewed_images(storage, like, manifest.resize_policy, held_out=True)
        if not len(held_out):
            continue
        predictor, count, right = Predictor(bundle, "cuda" if torch.cuda.is_available() else "cpu"), len(held_out), 0
        for start in range(0, count, _BATCH):
            part = slice(start, start + _BATCH)
            predicted, labels = predictor.predict(held_out.images[part]).labels, held_out.labels[part]
            true = labels if held_out.is_multi_label else np.eye(len(names), dtype=np.uint8)[labels]
            right += int((predicted == true.astype(bool)).all(axis=1).sum())
        texts.append(f"{bundle.reference} {describe_accuracy(right / count, count)}")
    return f"right on {count:,} reviewed pictures that were not trained on: {', '.join(texts)}" if texts else ""

"""Select the images to evaluate a model on; by default the test split of its training."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.config.data_choice import DataChoice, SplitName
from cifar_ray.data import DatasetSplits, ImageDataset, load_splits
from cifar_ray.data.dataset import join
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.metrics.accuracy import Labels
from cifar_ray.store import Manifest

_logger = logging.getLogger(__name__)

# Settings that determine which images are in which split
_SPLIT_SETTINGS = ("dataset", "data_dir", "columns", "val_fraction", "test_fraction", "seed", "split_seed", "groups")


@dataclass(frozen=True, eq=False)
class Selected:
    """Images to evaluate a model on.

    Attributes:
        name: name of the data set.
        split: the selected split; `val` if test was requested but does not exist.
        images: the images, with the label numbers of the model.
        train: training images to search for near-duplicates; `None` unless the split is test or val.
        root: folder of the files; `None` if the data set is not a folder of files.
        config: settings with which `load_splits` loaded the images.
        as_trained: whether the metrics in the manifest were measured on the same images; `None` if unknown.
    """

    name: str
    split: SplitName
    images: ImageDataset
    train: ImageDataset | None
    root: Path | None
    config: TrainConfig
    as_trained: bool | None


def select(manifest: Manifest, choice: DataChoice, progress: StartTask = no_progress) -> Selected:
    """Load the chosen images, prepared as the model needs them.

    Raises:
        ConfigError: if the manifest does not name the training data and no data were chosen.
        DataError: if the data are missing, lack the split, or have classes that the model lacks.
    """
    selected = load_selected(manifest, _data_config(manifest, choice), choice.split, progress)
    if selected.split != choice.split:
        is_other = choice.dataset is not None or choice.data_dir is not None
        more = "; for data that the model was not trained on, --split all uses every picture" if is_other else ""
        _logger.info("%s has no test pictures: its %d validation pictures are used%s", selected.name, len(selected.images), more)
    return selected


def load_selected(manifest: Manifest, config: TrainConfig, split: SplitName, progress: StartTask = no_progress) -> Selected:
    """Load the images of a split, at the input size of the model; validation images if the data set has no test split.

    Raises:
        DataError: see `select`.
    """
    config = config.model_copy(update={"image_size": manifest.image_size_px, "resize_policy": manifest.resize_policy})
    splits = load_splits(config, progress)
    if split == "test" and splits.test is None and splits.val is not None:
        split = "val"
    chosen = pick(splits, split)
    images = relabel(chosen, manifest.class_names, splits.name)
    train = splits.train if split in ("test", "val") else None
    place = Path(config.data_dir) if config.dataset == "folder" and config.data_dir is not None else None
    root = place.parent if place is not None and place.is_file() else place
    as_trained = None
    if split == "test" and manifest.test_fingerprint:
        as_trained = chosen.fingerprint == manifest.test_fingerprint
    elif split == "val" and _divides_otherwise(manifest, config):
        as_trained = False
    return Selected(splits.name, split, images, train, root, config, as_trained)


def _divides_otherwise(manifest: Manifest, config: TrainConfig) -> bool:
    """Whether the training of a model divided the same data into other splits; their manifest has no fingerprint of validation images."""
    known = _split_settings(manifest)
    if "dataset" not in known:
        return False
    trained = parse_config(TrainConfig, known)
    if (trained.dataset, trained.data_dir, trained.columns) != (config.dataset, config.data_dir, config.columns):
        return False
    theirs, ours = ((one.seed_of_splits, one.val_fraction, one.test_fraction, one.groups) for one in (trained, config))
    return theirs != ours


def _split_settings(manifest: Manifest) -> dict[str, Any]:
    return {key: manifest.train_config[key] for key in _SPLIT_SETTINGS if key in manifest.train_config and key in TrainConfig.model_fields}


def _data_config(manifest: Manifest, choice: DataChoice) -> TrainConfig:
    values = _split_settings(manifest)
    if choice.dataset is not None or choice.data_dir is not None:
        dataset = choice.dataset or ("folder" if choice.data_dir is not None else None)
        values |= {"dataset": dataset, "data_dir": choice.data_dir, "columns": choice.columns}
    values["task"] = manifest.task
    if "dataset" not in values:
        raise ConfigError("dataset: the model does not name its training data; pass --dataset NAME or --data-dir DIR")
    if choice.split == "all":
        values |= {"val_fraction": 0.0, "test_fraction": 0.0}
    return parse_config(TrainConfig, values)


def pick(splits: DatasetSplits, split: SplitName) -> ImageDataset:
    """One split, or for `all` the concatenation of all splits.

    Raises:
        DataError: if the data set has no such split.
    """
    parts = dict(splits)
    if split != "all":
        if split not in parts:
            raise DataError(f"{splits.name} has no {split} split; pass --split with one of {', '.join(parts)}, all")
        return parts[split]
    if len(parts) == 1:
        return splits.train
    return join(list(parts.values()))


def relabel(dataset: ImageDataset, class_names: tuple[str, ...], where: str) -> ImageDataset:
    """The same images with the label numbers of a model, matched by class name; the data set may lack some classes of the model.

    Raises:
        DataError: if the model lacks a class of the data set.
    """
    if dataset.class_names == class_names:
        return dataset
    unknown = [name for name in dataset.class_names if name not in class_names]
    if unknown:
        raise DataError(f"class {unknown[0]!r} of {where} is not a class of the model. Classes of the model: {', '.join(class_names)}")
    label_of = np.array([class_names.index(name) for name in dataset.class_names], np.int64)
    labels: Labels
    if dataset.is_multi_label:
        labels = np.zeros((len(dataset), len(class_names)), np.uint8)
        labels[:, label_of] = dataset.labels
    else:
        labels = label_of[dataset.labels]
    return replace(dataset, labels=labels, class_names=class_names)

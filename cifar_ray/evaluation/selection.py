"""Which images a model is examined on: by default the very ones that its training set aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cifar_ray.config import Config, DatasetName, TrainConfig, parse_config
from cifar_ray.data import DatasetSplits, ImageDataset, load_splits
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.store import Manifest

SplitName = Literal["test", "val", "train", "all"]

# What decides which images are in which split.
_DECISIVE = ("dataset", "data_dir", "val_fraction", "test_fraction", "seed", "groups")


class DataChoice(Config):
    """Where the images come from."""

    dataset: DatasetName | None = Field(None, description="default: what the model was trained on, split as then")
    data_dir: str | None = Field(
        None, description="folder: DIR/<class>/… or DIR/train/<class>/… with val/ and test/; cifar: where the files lie"
    )
    split: SplitName = Field("test", description="all: every image there is, for data that the model never saw")


@dataclass(frozen=True, eq=False)
class Selected:
    """Images to examine a model on.

    Attributes:
        name: of the data set.
        split: which part of it.
        images: labelled with the model's classes.
        train: the data set's training images, where the others are held against them; `None` where there is nothing to hold.
        root: where the files lie; `None` where there are none.
        config: what `load_splits` was given.
        as_trained: the images are those that the figures in the manifest were measured on; `None` where that is not known.
    """

    name: str
    split: SplitName
    images: ImageDataset
    train: ImageDataset | None
    root: Path | None
    config: TrainConfig
    as_trained: bool | None


def select(manifest: Manifest, choice: DataChoice, progress: StartTask = no_progress) -> Selected:
    """Loads what was chosen, prepared as the model takes it.

    Raises:
        ConfigError: if the bundle does not say what it was trained on and nothing was chosen.
        DataError: if the data are missing, have no such split, or have classes that the model does not know.
    """
    return load_selected(manifest, _data_config(manifest, choice), choice.split, progress)


def load_selected(manifest: Manifest, config: TrainConfig, split: SplitName, progress: StartTask = no_progress) -> Selected:
    """The images that a config names, at the size that a model takes.

    Raises:
        DataError: see `select`.
    """
    config = config.model_copy(update={"image_size": manifest.image_size_px, "resize_policy": manifest.resize_policy})
    splits = load_splits(config, progress)
    chosen = pick(splits, split)
    images = relabel(chosen, manifest.class_names, splits.name)
    held_against = splits.train if split in ("test", "val") else None
    root = Path(config.data_dir) if config.dataset == "folder" and config.data_dir is not None else None
    as_trained = chosen.fingerprint == manifest.test_fingerprint if split == "test" and manifest.test_fingerprint else None
    return Selected(splits.name, split, images, held_against, root, config, as_trained)


def _data_config(manifest: Manifest, choice: DataChoice) -> TrainConfig:
    values: dict[str, Any] = {
        key: manifest.train_config[key] for key in _DECISIVE if key in manifest.train_config and key in TrainConfig.model_fields
    }
    if choice.dataset is not None or choice.data_dir is not None:
        dataset = choice.dataset or ("folder" if choice.data_dir is not None else None)
        values |= {"dataset": dataset, "data_dir": choice.data_dir}
    if "dataset" not in values:
        raise ConfigError("dataset: the model does not say what it was trained on; pass --dataset NAME or --data-dir DIR")
    if choice.split == "all":
        values |= {"val_fraction": 0.0, "test_fraction": 0.0}
    return parse_config(TrainConfig, values)


def pick(splits: DatasetSplits, split: SplitName) -> ImageDataset:
    """One split, or all of them one after the other.

    Raises:
        DataError: if there is none of that name.
    """
    parts = dict(splits)
    if split != "all":
        if split not in parts:
            raise DataError(f"{splits.name} has no {split} images; pass --split and one of {', '.join(parts)} or all")
        return parts[split]
    if len(parts) == 1:
        return splits.train
    names = [part.files for part in parts.values() if part.files is not None]
    return ImageDataset(
        np.concatenate([part.images for part in parts.values()]),
        np.concatenate([part.labels for part in parts.values()]),
        splits.train.class_names,
        np.concatenate(names) if len(names) == len(parts) else None,
    )


def relabel(dataset: ImageDataset, class_names: tuple[str, ...], where: str) -> ImageDataset:
    """The same images with a model's labels, by the classes' names; a data set need not have all of them.

    Raises:
        DataError: if the model does not know one of the classes.
    """
    if dataset.class_names == class_names:
        return dataset
    unknown = [name for name in dataset.class_names if name not in class_names]
    if unknown:
        raise DataError(f"class {unknown[0]!r} of {where} is none of the model's: {', '.join(class_names)}")
    label_of = np.array([class_names.index(name) for name in dataset.class_names], np.int64)
    return ImageDataset(dataset.images, label_of[dataset.labels], class_names, dataset.files)

"""Settings of a search, saved in its folder so that the same command resumes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from cifar_ray.config import TrainConfig, read_yaml
from cifar_ray.config.documents import without_format
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.metrics.accuracy import Labels
from cifar_ray.recipes import recipe_search_space
from cifar_ray.storage import FileTree
from cifar_ray.training.records.saved_runs import check_reviews_until
from cifar_ray.tuning.record import Record
from cifar_ray.tuning.space import SearchSpace, parse_space, to_mapping, trial_config

FOLDER = "tunings"
_SETTINGS_FILE = "search.yaml"
DATA_FILE = "data.sha256"
FORMAT_VERSION = 1
# Settings that may change when a search is resumed, because no result of a trial depends on them: of `fixed`, and of `search`.
_MAY_DIFFER = ("name", "promote", "num_workers", "storage", "cluster")
_MAY_CHANGE = ("time_budget", "max_concurrent", "num_samples", "confirm", "space")


@dataclass(frozen=True)
class SearchJob:
    """Name and settings of a search.

    Attributes:
        name: name of the search and of its folder.
        fixed: config of all trials, except for the searched fields.
        search: settings of the search.
        space: the search space.
    """

    name: str
    fixed: TrainConfig
    search: SearchConfig
    space: SearchSpace

    @property
    def folder(self) -> str:
        """Folder of the search, relative to the storage."""
        return f"{FOLDER}/{self.name}"

    @property
    def files(self) -> FileTree:
        """Files of the search."""
        return FileTree(self.fixed.storage, self.folder)

    def space_yaml(self) -> str:
        """The search space as YAML for `--space`."""
        return yaml.safe_dump(to_mapping(self.space), sort_keys=False, default_flow_style=None)

    def open_for(self, labels: Labels, val_images: int, digest: str = "") -> tuple[SearchJob, Record]:
        """Set the task of the job from its training labels, and open its record, see `open`.

        For several labels per picture, the metric mAP replaces accuracy.

        Args:
            labels: int64 `[N]`, or uint8 `[N, C]` for several labels per picture.
            val_images: number of validation images, for intervals.
            digest: see `digest_labels`; empty if unknown.
        """
        if labels.ndim == 1:
            return self, self.open(val_images, digest)
        metric = "val_map" if self.search.metric == "val_accuracy" else self.search.metric
        fixed, search = self.fixed.model_copy(update={"task": "multi-label"}), self.search.model_copy(update={"metric": metric})
        job = dataclasses.replace(self, fixed=fixed, search=search)
        return job, job.open(val_images, digest)

    def open(self, val_images: int | None = None, digest: str = "") -> Record:
        """Start the record of a new search, or load the record of an interrupted one.

        Args:
            val_images: number of validation images, for intervals.
            digest: see `digest_labels`; empty if unknown.

        Raises:
            ConfigError: if a search of this name is complete, or has other settings.
            DataError: if the data set has changed since the search started, so that trials could not be compared.
        """
        record = Record.load(self.files)
        ours = yaml.safe_dump({"format_version": FORMAT_VERSION} | self._settings(), sort_keys=False).encode()
        # if two searches start at the same time, the first one writes the settings
        settings = self.files.update(_SETTINGS_FILE, lambda present: present or ours)
        if _identity(without_format(yaml.safe_load(settings), self.files.path(_SETTINGS_FILE), FORMAT_VERSION)) != _identity(
            self._settings()
        ):
            raise ConfigError(f"name: search {self.name!r} in {self.files.path()} has other settings; choose another --name")
        if digest and self.files.update(DATA_FILE, lambda present: present or digest.encode()) != digest.encode():
            where = f"name: search {self.name!r} in {self.files.path()}"
            raise DataError(f"{where}: its images or labels have changed since; restore them, or choose another --name")
        if record is None:
            return Record(self.search.metric, self.fixed.epochs, self.search.num_samples, val_images=val_images)
        if record.ended and self.search.num_samples <= record.num_samples:
            raise ConfigError(f"name: search {self.name!r} is complete, see {self.files.path('report.html')}; choose another --name")
        record.num_samples, record.ended, record.val_images = self.search.num_samples, False, val_images or record.val_images
        return record

    def _settings(self) -> dict[str, Any]:
        return {
            "fixed": self.fixed.model_dump(mode="json"),
            "search": self.search.model_dump(mode="json"),
            "space": to_mapping(self.space),
        }


def digest_labels(splits: DatasetSplits) -> str:
    """sha256 of the classes, and of the labels of the training and validation images.

    It is quick enough for each trial, and trials that differ in the image size or in weights have the same.
    """
    digest = hashlib.sha256("\0".join(splits.train.class_names).encode())
    for part in (splits.train, splits.val):
        digest.update(b";" if part is None else b";" + part.labels.tobytes())
    return digest.hexdigest()


def prepare(fixed: TrainConfig, search: SearchConfig, space_values: Mapping[str, Any] | None = None) -> SearchJob:
    """Check the settings of a search. Without a name, the name is the model's or data set's name and a digest of the settings.

    Args:
        fixed: config of all trials, except for the searched fields.
        search: settings of the search.
        space_values: the search space; `None` for the file in `search.space`, or without such a file the space of the recipe.

    Raises:
        ConfigError: for invalid settings or an invalid search space, with one line for each mistake.
    """
    if fixed.cluster == "local":
        raise ConfigError("--cluster local: Ray Tune needs a cluster; leave out --cluster, or pass --cluster start")
    if fixed.val_fraction == 0:
        raise ConfigError("val_fraction (0): must be more than 0, because trials are compared on validation images")
    if fixed.with_reviews and fixed.reviews_until is None:
        raise ConfigError("--with-reviews: people label while trials run; add --reviews-until TIME, so that all trials see the same")
    check_reviews_until(fixed)
    if search.grace_period > fixed.epochs:
        raise ConfigError(f"grace_period ({search.grace_period}) must be at most epochs ({fixed.epochs})")
    if space_values is None:
        space_values = recipe_search_space(fixed.recipe) if search.space is None else read_yaml(search.space, "--space")
    space = parse_space(space_values, fixed)
    job = SearchJob(fixed.name or "", fixed, search, space)
    if fixed.name is not None:
        return job
    digest = hashlib.sha256(json.dumps(_identity(job._settings()), sort_keys=True).encode()).hexdigest()
    return SearchJob(f"{fixed.save_as or fixed.dataset}-{digest[:8]}", fixed, search, space)


def best_config(record: Record, fixed: TrainConfig) -> TrainConfig | None:
    """The config of the best trial, without a run name; `None` before a trial has a metric."""
    ranked = record.ranked()
    return trial_config(fixed, ranked[0].parameters).model_copy(update={"name": None}) if ranked else None


def saved_settings(storage: str, name: str) -> dict[str, Any]:
    """Settings with which a search was started: `fixed`, `search` and `space`.

    Raises:
        ConfigError: if there is no search of this name.
    """
    tree = FileTree(storage, FOLDER)
    settings = tree.read(f"{name}/{_SETTINGS_FILE}")
    if settings is None:
        raise ConfigError(f"--resume {name}: not found in {tree.path()}. Available: {', '.join(tree.folders()) or 'none'}")
    values = without_format(yaml.safe_load(settings), tree.path(f"{name}/{_SETTINGS_FILE}"), FORMAT_VERSION)
    values["fixed"] = {"draws": 1} | values["fixed"] | {"name": name, "storage": storage}
    return values


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that must be equal to resume a search."""
    return {
        # without unset fields, because earlier releases did not save all fields
        "fixed": {
            key: value
            for key, value in ({"draws": 1} | settings["fixed"]).items()
            if key not in _MAY_DIFFER and value is not None and (key, value) not in (("task", "auto"), ("cuda_graph", "auto"))
        },
        "search": {key: value for key, value in settings["search"].items() if key not in _MAY_CHANGE},
        "space": settings["space"],
    }

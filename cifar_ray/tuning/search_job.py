"""A search as its folder describes it: what was asked for, so that the same command goes on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from cifar_ray.config import TrainConfig, read_yaml
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.errors import ConfigError
from cifar_ray.recipes import recipe_search_space
from cifar_ray.storage import FileTree
from cifar_ray.tuning.record import Record
from cifar_ray.tuning.space import SearchSpace, parse_space, to_mapping, trial_config

FOLDER = "tunings"
_SETTINGS_FILE = "search.yaml"
# May differ between a search and its continuation: no trial's figures depend on them.
_MAY_DIFFER = ("time_budget", "max_concurrent", "num_samples", "confirm", "space")


@dataclass(frozen=True)
class SearchJob:
    """All that a search needs.

    Attributes:
        name: of the search and of its folder.
        fixed: config of all trials but for the searched fields.
        search: how to search.
        space: what to search.
    """

    name: str
    fixed: TrainConfig
    search: SearchConfig
    space: SearchSpace

    @property
    def folder(self) -> str:
        """Below the storage."""
        return f"{FOLDER}/{self.name}"

    @property
    def files(self) -> FileTree:
        """What lies there."""
        return FileTree(self.fixed.storage, self.folder)

    def space_yaml(self) -> str:
        """The search space as `--space` reads it."""
        return yaml.safe_dump(to_mapping(self.space), sort_keys=False, default_flow_style=None)

    def open(self) -> Record:
        """Starts the record of a new search, or takes up that of one that was interrupted.

        Raises:
            ConfigError: if a search of this name is at its end, or is another one.
        """
        record = Record.load(self.files)
        settings = self.files.read(_SETTINGS_FILE)
        if record is None or settings is None:
            self.files.replace(_SETTINGS_FILE, yaml.safe_dump(self._settings(), sort_keys=False).encode())
            return Record(self.search.metric, self.fixed.epochs, self.search.num_samples)
        if _identity(yaml.safe_load(settings)) != _identity(self._settings()):
            raise ConfigError(f"name: search {self.name!r} in {self.files.path()} has other settings; choose another --name")
        if record.ended and self.search.num_samples <= record.num_samples:
            raise ConfigError(f"name: search {self.name!r} has ended, see {self.files.path('report.html')}; choose another --name")
        record.num_samples, record.ended = self.search.num_samples, False
        return record

    def _settings(self) -> dict[str, Any]:
        return {
            "fixed": self.fixed.model_dump(mode="json"),
            "search": self.search.model_dump(mode="json"),
            "space": to_mapping(self.space),
        }


def prepare(fixed: TrainConfig, search: SearchConfig, space_values: Mapping[str, Any] | None = None) -> SearchJob:
    """Checks the settings of a search; a name that was not given follows from them.

    Args:
        fixed: config of all trials but for the searched fields.
        search: how to search.
        space_values: what to search; default: the file that `search` names, else the recipe's.

    Raises:
        ConfigError: for an impossible search space, one line for each mistake, or an impossible combination.
    """
    if fixed.val_fraction == 0:
        raise ConfigError("val_fraction: trials are compared on validation images; it must be more than 0")
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
    """What a search was started with: `fixed`, `search` and `space`.

    Raises:
        ConfigError: if there is none of this name.
    """
    tree = FileTree(storage, FOLDER)
    settings = tree.read(f"{name}/{_SETTINGS_FILE}")
    if settings is None:
        raise ConfigError(f"--resume {name}: no such search in {tree.path()}; there are {', '.join(tree.folders()) or 'none'}")
    values: dict[str, Any] = yaml.safe_load(settings)
    values["fixed"] |= {"name": name, "storage": storage}
    return values


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    """What two searches must share to be the same."""
    return {
        "fixed": {key: value for key, value in settings["fixed"].items() if key not in ("name", "promote", "num_workers", "storage")},
        "search": {key: value for key, value in settings["search"].items() if key not in _MAY_DIFFER},
        "space": settings["space"],
    }

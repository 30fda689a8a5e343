"""Find the latest run and read the settings of earlier runs, without importing torch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

import yaml

from cifar_ray.config import TrainConfig
from cifar_ray.config.documents import without_format
from cifar_ray.errors import ConfigError, StoreError
from cifar_ray.storage import FileTree

CONFIG_FILE = "config.yaml"
CLAIMS = "claims"
FIRST_CLAIM = f"{CLAIMS}/1/{CONFIG_FILE}"

Command = TypeVar("Command", bound=TrainConfig)


def latest_run(storage: str) -> str:
    """Name of the run that began last.

    Raises:
        ConfigError: if there is no run.
    """
    runs = FileTree(storage, "runs")
    newest = runs.newest([f"{name}/{CONFIG_FILE}" for name in runs.folders()])
    if newest is None:
        raise ConfigError(f"--resume: no run in {storage}/runs yet; start one with: cifar-ray train")
    return newest.partition("/")[0]


def saved_settings(name: str, storage: str) -> dict[str, Any]:
    """Read the settings of a run, to resume it.

    Raises:
        ConfigError: if the run does not exist.
    """
    saved = read_config(FileTree(storage, f"runs/{name}"))
    if saved is None:
        available = ", ".join(FileTree(storage, "runs").folders()) or "none"
        raise ConfigError(f"--resume {name}: run not found in {storage}/runs. Available: {available}")
    return saved | {"name": name, "storage": storage}


def set_reviews_until(config: Command) -> Command:
    """Fix the time until which reviewed pictures are used: that of the run if it exists, else now.

    People label while a run trains. Without a fixed time, workers that load the pictures later, and a resumed run, would see other data.
    A run of release 1.0 has no time; it is resumed as it was started.

    Raises:
        ConfigError: if the config of a new run has a time in the future.
        StoreError: if the config of the run is damaged.
    """
    if not config.with_reviews:
        return config
    saved = _begun(config)
    if saved is None:
        check_reviews_until(config)
    if config.reviews_until is not None:
        return config
    return config.model_copy(update={"reviews_until": datetime.now(UTC).isoformat() if saved is None else saved.get("reviews_until")})


def check_reviews_until(config: TrainConfig) -> None:
    """Refuse a time in the future: labels that people give until then would change the data of the run.

    Raises:
        ConfigError: if the time is in the future.
    """
    if config.reviews_until is not None and datetime.fromisoformat(config.reviews_until) > datetime.now(UTC):
        raise ConfigError(
            f"--reviews-until {config.reviews_until}: is in the future; pass a time until now, so that later labels do not count"
        )


def _begun(config: TrainConfig) -> dict[str, Any] | None:
    """The config with which the run of this name began; also if it was killed between the claim of its name and its config."""
    if config.name is None:
        return None
    files = FileTree(config.storage, f"runs/{config.name}")
    return read_config(files) or read_config(files, FIRST_CLAIM)


def read_config(files: FileTree, name: str = CONFIG_FILE) -> dict[str, Any] | None:
    """Read a config in the folder of a run as plain values; `None` if the file does not exist.

    Raises:
        StoreError: if the file is damaged.
    """
    data = files.read(name)
    if data is None:
        return None
    try:
        saved = yaml.safe_load(data)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise StoreError(f"{files.path(name)}: {' '.join(str(error).split())}") from None
    if not isinstance(saved, dict):
        raise StoreError(f"{files.path(name)} is damaged; choose another --name")
    return {"draws": 1} | without_format(saved, files.path(name))  # early releases had only draws 1, and did not save them

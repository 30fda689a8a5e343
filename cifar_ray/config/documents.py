"""Settings as plain values and as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cifar_ray.config.base import Config
from cifar_ray.errors import ConfigError

ConfigType = TypeVar("ConfigType", bound=Config)


def describe(error: ValidationError) -> str:
    """The first mistake in a validation error as one line: `field: what is wrong (got value)`."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key"
    if not field:
        return message
    return f"{field}: {message} (got {first['input']!r})"


def parse_config(config_type: type[ConfigType], values: dict[str, Any]) -> ConfigType:
    """Validates plain values into a config.

    Raises:
        ConfigError: naming the first field that is unknown or impossible.
    """
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def to_yaml(config: Config) -> str:
    """The full config as YAML; `read_yaml` and `parse_config` give it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: str | Path, flag: str = "--config") -> dict[str, Any]:
    """Reads a YAML mapping; `flag` is what the user gave the path with.

    Raises:
        ConfigError: if the file cannot be read or is not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{flag} {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{flag} {path}: expected a mapping of settings, got {type(values).__name__}")
    return values

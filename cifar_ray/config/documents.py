"""Convert settings to plain values and YAML, and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cifar_ray.config.base import FORMS, Config
from cifar_ray.config.locations import local_path
from cifar_ray.errors import ConfigError

FORMAT_VERSION = 1  # format version of the YAML files that contain a config
_FORMAT_KEY = "format_version"

ConfigType = TypeVar("ConfigType", bound=Config)


class _PlainYaml(yaml.SafeLoader):
    """YAML without surprises: numbers are decimal, true and false are the only truth values, and duplicate keys are an error.

    YAML 1.1 reads `2:8` as 128 (base 60), `name: 2024-01-02` as a date and `name: no` as false; of duplicate keys, it silently takes the
    last.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  (as in PyYAML)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge", "value")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # PyYAML raises them if a value does not fit its tag, as in `!!int abc`
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"{node.value!r} is not of the type !!{kind}", node.start_mark) from None


for _tag, _form, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", "[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+0123456789."),
):
    _PlainYaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_form})$"), list(_first))


def describe(error: ValidationError) -> str:
    """Describe the first mistake in a validation error in one line: `field: what is wrong (got value)`."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    field = field if field.isprintable() else repr(field)
    message = " ".join(in_words(first["msg"]).split())
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key"
    if not field:
        return message
    return f"{field}: {message} (got {first['input']!r})"


def in_words(message: str) -> str:
    """A message of pydantic without its prefix, and with words in place of a regular expression."""
    message = message.removeprefix("Value error, ")
    pattern = message.removeprefix("String should match pattern ").strip("'")
    return FORMS.get(pattern, message)


def parse_config(config_type: type[ConfigType], values: dict[str, Any]) -> ConfigType:
    """Create a config from plain values, and validate it.

    Raises:
        ConfigError: if a field is unknown or invalid; the message names the first such field.
    """
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def to_yaml(config: Config) -> str:
    """The full config as YAML; `read_yaml` and `parse_config` convert it back."""
    return yaml.safe_dump({_FORMAT_KEY: FORMAT_VERSION} | config.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: str | Path, flag: str = "--config") -> dict[str, Any]:
    """Read a YAML mapping; `flag` is the user's flag for the path, for messages.

    Raises:
        ConfigError: if the file cannot be read, is not a mapping, or was written by a newer release.
    """
    try:
        values = yaml.load(local_path(str(path)).read_text(encoding="utf-8-sig"), _PlainYaml)  # noqa: S506  (a safe loader)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ConfigError(f"{flag} {path}: nested too deeply") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{flag} {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{flag} {path}: expected a mapping of settings, got {type(values).__name__}")
    return without_format(values, f"{flag} {path}")


def without_format(values: dict[str, Any], where: str, newest: int = FORMAT_VERSION) -> dict[str, Any]:
    """Check the format version of a file, and return the other content; files of release 0.1 have no version.

    Args:
        values: content of the file.
        where: the file, for the message.
        newest: the newest version that this release reads.

    Raises:
        ConfigError: if a newer release wrote the file.
    """
    version = values.get(_FORMAT_KEY, newest)
    if not isinstance(version, int) or version > newest:
        raise ConfigError(f"{where}: format_version {version} is not one that this release reads (up to {newest}); upgrade cifar-ray")
    return {key: value for key, value in values.items() if key != _FORMAT_KEY}


def flatten(values: dict[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to one level with dotted keys: `{"a": {"b": 1}}` becomes `{"a.b": "1"}`."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found

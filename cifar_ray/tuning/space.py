"""The search space: the searched fields of a `TrainConfig` and their values or bounds.

As YAML, one field per line, nested or with dots:

    optimizer.lr: {loguniform: [0.01, 1.0]}          # also uniform
    augmentation.translate_px: {randint: [0, 4]}     # both ends included
    batch_size: {choice: [500, 1000, 2000]}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.errors import ConfigError

Kind = Literal["uniform", "loguniform", "randint", "choice"]
Value = float | int | str | bool | None

# All trials must use the same images for the same number of epochs, or their accuracies cannot be compared.
_NOT_SEARCHED = {
    "recipe", "name", "save_as", "storage", "promote", "dataset", "data_dir", "columns", "task", "val_fraction", "test_fraction",
    "groups", "with_reviews", "reviews_until", "epochs", "seed", "split_seed", "num_workers", "test_time_augmentation",
}  # fmt: skip
_GRID_POINTS = 3


@dataclass(frozen=True)
class Parameter:
    """One searched field.

    Attributes:
        path: name of the field, with dots.
        kind: distribution that values are drawn from.
        values: lower and upper bound, both included; for `choice`, all values.
    """

    path: str
    kind: Kind
    values: tuple[Value, ...]

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of a number."""
        low, high = self.values
        assert isinstance(low, (int, float))  # noqa: S101
        assert isinstance(high, (int, float))  # noqa: S101
        return low, high

    def contains(self, value: Any) -> bool:
        """Whether a value is within the bounds or among the choices."""
        if self.kind == "choice":
            return value in self.values
        return isinstance(value, (int, float)) and self.bounds[0] <= value <= self.bounds[1]

    def grid(self) -> Sequence[Value]:
        """Values for a grid search: all choices, or both bounds and the middle of a range."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.bounds
        if self.kind == "loguniform":
            return [low, math.sqrt(low * high), high]
        if self.kind == "uniform":
            return [low, (low + high) / 2, high]
        return sorted({round(low + (high - low) * step / (_GRID_POINTS - 1)) for step in range(_GRID_POINTS)})

    def position(self, value: Any) -> float:
        """Position of a value between the bounds, or among the choices, 0–1; on a logarithmic scale for `loguniform`."""
        if self.kind == "choice":
            return self.values.index(value) / (len(self.values) - 1)
        low, high = self.bounds
        if self.kind == "loguniform":
            return math.log(value / low) / math.log(high / low)
        return float((value - low) / (high - low))


SearchSpace = tuple[Parameter, ...]


def parse_space(values: Mapping[str, Any], fixed: TrainConfig) -> SearchSpace:
    """Read and check a search space.

    Args:
        values: field → {kind: bounds or values}.
        fixed: config of all other fields; each bound must be valid in it.

    Raises:
        ConfigError: with one line for each mistake.
    """
    space: list[Parameter] = []
    mistakes: list[str] = []
    for path, domain in _fields(values):
        try:
            parameter = _parameter(path, domain)
            _check(parameter, fixed)
            space.append(parameter)
        except ConfigError as error:
            mistakes.append(str(error))
    if not space and not mistakes:
        mistakes.append("the search space is empty; name at least one field, as in 'optimizer.lr: {loguniform: [0.01, 1]}'")
    if mistakes:
        raise ConfigError("\n".join(f"search space: {mistake}" for mistake in mistakes))
    return tuple(space)


def to_mapping(space: SearchSpace) -> dict[str, dict[str, list[Value]]]:
    """The search space as a mapping that `parse_space` reads."""
    return {parameter.path: {parameter.kind: list(parameter.values)} for parameter in space}


def trial_config(fixed: TrainConfig, parameters: Mapping[str, Any]) -> TrainConfig:
    """The fixed config with the parameters of a trial.

    Raises:
        ConfigError: if the combination is invalid.
    """
    values = fixed.model_dump()
    for path, value in parameters.items():
        *groups, field = path.split(".")
        target = values
        for group in groups:
            target = target[group]
        target[field] = value
    return parse_config(TrainConfig, values)


def present_values(fixed: TrainConfig, space: SearchSpace) -> dict[str, Value] | None:
    """Values of the searched fields in the fixed config; `None` if they are outside the search space."""
    values = {parameter.path: _present(fixed, parameter.path) for parameter in space}
    return values if all(parameter.contains(values[parameter.path]) for parameter in space) else None


def _present(fixed: TrainConfig, path: str) -> Any:
    value: Any = fixed
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _fields(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the paths of searched fields, with dots, and their domains, from a mapping that may be nested."""
    for name, content in values.items():
        path = f"{above}{name}"
        if isinstance(content, Mapping) and not set(content) & set(get_args(Kind)) and _is_group(path):
            yield from _fields(content, f"{path}.")
        else:
            yield path, content


def _is_group(path: str) -> bool:
    field = TrainConfig.model_fields.get(path)
    return field is not None and hasattr(field.annotation, "model_fields")


def _known_fields() -> set[str]:
    known: set[str] = set()
    for name, field in TrainConfig.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        known |= {f"{name}.{part}" for part in inner} if inner else {name}
    return known - _NOT_SEARCHED


def _parameter(path: str, domain: Any) -> Parameter:
    if path in _NOT_SEARCHED:
        raise ConfigError(f"{path}: cannot be searched; it must be the same for all trials, or their accuracies cannot be compared")
    if path not in _known_fields():
        raise ConfigError(f"{path}: no such field; list the fields with cifar-ray train --help")
    kinds = ", ".join(get_args(Kind))
    if not isinstance(domain, Mapping) or len(domain) != 1:
        raise ConfigError(f"{path}: expected one of {kinds} with its values, as in {{uniform: [0, 1]}} (got {domain!r})")
    ((kind, values),) = domain.items()
    if kind not in get_args(Kind):
        raise ConfigError(f"{path}: unknown kind {kind!r}. Available: {kinds}")
    if not isinstance(values, (list, tuple)) or not values:
        raise ConfigError(f"{path}: {kind} needs a list of values (got {values!r})")
    if kind == "choice":
        if len(values) < 2:
            raise ConfigError(f"{path}: choice needs at least two values (got {values!r})")
        return Parameter(path, kind, tuple(values))
    values = [_number(value) for value in values]
    numbers = int if kind == "randint" else (int, float)
    if len(values) != 2 or not all(isinstance(value, numbers) and not isinstance(value, bool) for value in values):
        raise ConfigError(f"{path}: {kind} needs [low, high], two {'whole ' if kind == 'randint' else ''}numbers (got {values!r})")
    low, high = values
    if not low < high or not all(map(math.isfinite, values)):
        raise ConfigError(f"{path}: {kind} needs low < high (got {values!r})")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{path}: loguniform needs low > 0 (got {values!r})")
    return Parameter(path, kind, (low, high))


def _number(value: Any) -> Any:
    """Convert text to a number, because YAML 1.1 reads `1e-3` as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check(parameter: Parameter, fixed: TrainConfig) -> None:
    """Check that the config is valid with each value, or with both bounds."""
    for value in parameter.values:
        trial_config(fixed, {parameter.path: value})

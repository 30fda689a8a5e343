"""Command lines: config → flags, errors → one line and an exit code. The one place for both."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import Field, ValidationError

from cifar_ray.config import NAME_PATTERN, SearchConfig, TrainConfig, default_storage, describe, parse_config, read_yaml, resolve_storage
from cifar_ray.errors import CifarRayError, ConfigError, TrainingError
from cifar_ray.recipes import default_recipe, get_recipe
from cifar_ray.tuning.settings import saved_settings

CommandType = TypeVar("CommandType", "TrainCommand", "TuneCommand")

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_BOX_DRAWING = re.compile(r"[─-╿]+")
_VALIDATION_ERROR = re.compile(
    r"Error parsing (?P<config>\S+): \d+ validation errors? for \w+ "
    r"(?:Value error, (?P<combination>.*?)|(?P<field>[\w.]+) (?P<message>.*?)) \[type=.*?input_value=(?P<value>.*?), input_type"
)


def run(main: Callable[[], int]) -> int:
    """Runs a verb: a user's mistake becomes one line on stderr, never a traceback.

    Returns:
        What `main` returns; 2 for a user's mistake, 1 for a failed training, 130 after Ctrl-C.
    """
    try:
        return main()
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except CifarRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def parse(command: Any, argv: Sequence[str] | None, prog: str, default: Any = None) -> Any:
    """Parses flags into `command` (a pydantic model, dataclass, function or union of them) with tyro.

    Raises:
        ConfigError: one line naming the flag that is unknown, missing or impossible.
    """
    options = {} if default is None else {"default": default}
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):
            return tyro.cli(command, args=argv, prog=prog, **options)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(refused.getvalue())) from None


def _one_line(report: str) -> str:
    """Folds tyro's box of several lines into one, and a config's validation error in it into `field: message`."""
    text = " ".join(_BOX_DRAWING.sub(" ", report).split())
    invalid = _VALIDATION_ERROR.search(text)
    if invalid and invalid["combination"]:
        return invalid["combination"]
    if invalid:
        nested = f"{invalid['config']}." if invalid["config"].islower() else ""
        message = invalid["message"].removeprefix("Value error, ")
        return f"{nested}{invalid['field']}: {message} (got {invalid['value']})"
    for noise in ("Got errors:", "Argument helptext:", "For full helptext"):
        text = text.partition(noise)[0]
    return text.strip().removeprefix("Value error ").removeprefix("Unrecognized options ")


class TrainCommand(TrainConfig):
    """Trains an image classifier on every GPU (or CPU) you have, keeps it in the model store, and says how good it is.

    Defaults come from a recipe; --config FILE.yaml changes them, and flags change both.
    """

    config: str | None = Field(None, description="YAML of settings, e.g. <storage>/runs/<name>/config.yaml, which repeats that run")
    list_recipes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(False, description="show all recipes and stop")
    list_models: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(False, description="show all architectures and stop")


class TuneCommand(TrainConfig, SearchConfig):
    """Finds a better recipe for your images, and hands it back as best.yaml, which `train --config` runs.

    All settings of training are the fixed part; the search space, from the recipe or --space FILE.yaml, is what varies.
    The same command, or --resume NAME, goes on with a search that was interrupted.
    """

    name: str | None = Field(
        None, pattern=NAME_PATTERN, description="name of the search; default: follows from the settings, so that the same command goes on"
    )
    config: str | None = Field(None, description="YAML of training settings: where the search starts, and its fixed part")
    resume: str | None = Field(None, description="name of the search to go on with; give --storage too where it is not the default")
    show_space: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(False, description="print the search space as YAML and stop")
    train_best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        False, description="then train the best recipe in full, keep it in the model store and promote it as --promote says"
    )

    def fixed(self) -> TrainConfig:
        """The part that training knows."""
        return TrainConfig.model_validate(self.model_dump(include=set(TrainConfig.model_fields)))

    def search_config(self) -> SearchConfig:
        """The part that searching knows."""
        return SearchConfig.model_validate(self.model_dump(include=set(SearchConfig.model_fields)))


def parse_train_command(argv: Sequence[str] | None, prog: str) -> TrainCommand:
    """Recipe, then file, then flags, each over the one before.

    Raises:
        ConfigError: one line naming the field that is unknown or impossible.
    """
    return _parse_over_recipe(TrainCommand, argv, prog, _decisive_flags(argv))


def parse_tune_command(argv: Sequence[str] | None, prog: str) -> TuneCommand:
    """The same for a search; over the recipe comes what `--resume` was started with.

    Raises:
        ConfigError: one line naming the field that is unknown or impossible.
    """
    flags = _decisive_flags(argv)
    saved: dict[str, Any] = {}
    if "resume" in flags:
        settings = saved_settings(resolve_storage(flags.get("storage", default_storage())), flags["resume"])
        saved = settings["fixed"] | settings["search"] | {"resume": flags["resume"]}
    return _parse_over_recipe(TuneCommand, argv, prog, flags, saved)


def _decisive_flags(argv: Sequence[str] | None) -> dict[str, str]:
    """Flags that decide about the defaults of all others."""
    decisive = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--recipe", "--config", "--dataset", "--data-dir", "--model", "--resume", "--storage"):
        decisive.add_argument(flag, default=argparse.SUPPRESS)
    try:
        return vars(decisive.parse_known_args(argv)[0])
    except argparse.ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from None


def _parse_over_recipe(
    command_type: type[CommandType], argv: Sequence[str] | None, prog: str, flags: dict[str, str], saved: dict[str, Any] | None = None
) -> CommandType:
    known = {name: value for name, value in flags.items() if name in command_type.model_fields}
    chosen = (saved or {}) | (read_yaml(flags["config"]) if "config" in flags else {}) | known
    recipe = get_recipe(chosen.get("recipe") or default_recipe(chosen.get("dataset"), chosen.get("model")))
    defaults = parse_config(command_type, _merge(recipe.model_dump(), chosen))
    command: CommandType = parse(command_type, argv, prog, defaults)
    from cifar_ray.models import list_models  # brings torch, which the store's commands do without

    if command.model not in list_models():
        raise ConfigError(f"model: unknown architecture {command.model!r}; there are {', '.join(list_models())}")
    return command


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes` over them, nested mappings merged key by key."""
    merged = dict(values)
    for key, change in changes.items():
        both_mappings = isinstance(change, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], change) if both_mappings else change
    return merged

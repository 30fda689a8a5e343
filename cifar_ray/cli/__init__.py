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

from cifar_ray.config import Config, StartConfig, TrainConfig, default_storage, describe, parse_config, read_yaml, resolve_storage
from cifar_ray.errors import CifarRayError, ConfigError, Interrupted, TrainingError
from cifar_ray.recipes import default_recipe, get_recipe
from cifar_ray.storage import FileTree

CommandType = TypeVar("CommandType", bound=TrainConfig)

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
        What `main` returns; 2 for a user's mistake, 1 for a failed training, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        return main()
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except CifarRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
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


def output_folder(chosen: str | None, storage: str, default: str) -> FileTree:
    """Where a verb leaves its files: the folder that the user chose, else `default` below the storage."""
    return FileTree(resolve_storage(storage), default) if chosen is None else FileTree(resolve_storage(chosen), "")


class Tracked(Config):
    """What the verbs that train add to their settings."""

    track: str = Field("", description="log the run besides: tensorboard, mlflow ($MLFLOW_TRACKING_URI), or both with a comma")


class Resumable(Tracked):
    """What those add besides that train one model."""

    resume: str = Field(
        "auto",
        description="auto: the same command with the same --name goes on with an unfinished run; never; or NAME, the run to go on with",
    )


class TrainCommand(TrainConfig, Resumable):
    """Trains an image classifier on every GPU (or CPU) you have, keeps it in the model store, and says how good it is.

    Defaults come from a recipe; --config FILE.yaml changes them, and flags change both.
    """

    start: tyro.conf.Suppress[StartConfig | None] = None
    config: str | None = Field(None, description="YAML of settings, e.g. <storage>/runs/<name>/config.yaml, which repeats that run")
    list_recipes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(False, description="show all recipes and stop")
    list_models: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(False, description="show all architectures and stop")


def parse_train_command(argv: Sequence[str] | None, prog: str) -> TrainCommand:
    """`parse_over_recipe` for training; `--resume NAME` brings the settings of that run.

    Raises:
        ConfigError: as `parse_over_recipe`, or if there is no such run.
    """
    flags = peek(argv, ("--resume", "--storage"))
    run = flags.get("resume", "auto")
    if run in ("auto", "never"):
        return parse_over_recipe(TrainCommand, argv, prog)
    from cifar_ray.training.records.run_folder import saved_settings  # brings torch

    saved = saved_settings(run, resolve_storage(flags.get("storage") or default_storage()))
    return parse_over_recipe(TrainCommand, argv, prog, saved)


def parse_over_recipe(
    command_type: type[CommandType], argv: Sequence[str] | None, prog: str, saved: dict[str, Any] | None = None
) -> CommandType:
    """Recipe, then file, then flags, each over the one before.

    Args:
        command_type: the settings of a training, and what a verb adds to them; its field `config` is the file.
        argv: flags.
        prog: for the help.
        saved: settings between recipe and file.

    Raises:
        ConfigError: one line naming the field that is unknown or impossible.
    """
    flags = peek(argv, ("--recipe", "--config", "--dataset", "--data-dir", "--model"))
    chosen = (saved or {}) | (read_yaml(flags["config"]) if "config" in flags else {}) | flags
    recipe = get_recipe(chosen.get("recipe") or default_recipe(chosen.get("dataset"), chosen.get("model")))
    defaults = parse_config(command_type, merge(recipe.model_dump(), chosen))
    command: CommandType = parse(command_type, argv, prog, defaults)
    from cifar_ray.models import list_models  # brings torch, which the store's commands do without

    if command.model not in list_models():
        raise ConfigError(f"model: unknown architecture {command.model!r}; there are {', '.join(list_models())}")
    return command


def peek(argv: Sequence[str] | None, flags: Sequence[str]) -> dict[str, str]:
    """Those of `flags` that a command line gives, before all others are parsed: they decide the defaults of the rest.

    Raises:
        ConfigError: if one lacks its value.
    """
    decisive = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in flags:
        decisive.add_argument(flag, default=argparse.SUPPRESS)
    try:
        return vars(decisive.parse_known_args(argv)[0])
    except argparse.ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from None


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with `changes` over them, nested mappings merged key by key."""
    merged = dict(values)
    for key, change in changes.items():
        both_mappings = isinstance(change, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], change) if both_mappings else change
    return merged

"""Flags of the verbs that train: `train`, `finetune`, `tune` and `find_lr`. A recipe and files supply their defaults."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import tyro
from pydantic import Field

from cifar_ray.cli.arguments import essential_flags
from cifar_ray.cli.arguments.help_pages import Essentials
from cifar_ray.cli.arguments.parsing import parse, peek, show_and_exit
from cifar_ray.config import (
    NAME_PATTERN,
    Config,
    FrozenPart,
    Positive,
    ShareOfRate,
    StartConfig,
    TrainConfig,
    default_storage,
    local_path,
    parse_config,
    read_yaml,
    resolve_storage,
)
from cifar_ray.config.merging import merge_settings
from cifar_ray.config.search_config import SearchConfig
from cifar_ray.errors import ConfigError
from cifar_ray.recipes import describe_recipes
from cifar_ray.recipes.networks import NETWORKS, describe_networks
from cifar_ray.training.suited_settings import choose_settings, find_dataset

if TYPE_CHECKING:
    from cifar_ray.store import Bundle

CommandType = TypeVar("CommandType", bound=TrainConfig)


class TrackingFlags(Config):
    """The flag of all verbs that train a model."""

    track: str = Field("", description="also log the run to tensorboard, to mlflow ($MLFLOW_TRACKING_URI), or to both: tensorboard,mlflow")


class ResumeFlags(TrackingFlags):
    """The flags of the verbs that train one model."""

    resume: str = Field(
        "auto",
        description="auto: resume an unfinished run of the same --name and settings; never: do not resume; NAME: resume that run, or the "
        "latest without a NAME; with more --epochs also a finished one",
    )


class TrainCommand(TrainConfig, ResumeFlags):
    """Train an image classifier on all GPUs or CPU cores, save the model to the store, and report its accuracy.

    A recipe supplies the defaults; those below are for CIFAR-10. For your own pictures, train chooses others and prints its choice.
    The settings in --config FILE.yaml override the recipe, and flags override both.
    """

    essentials: ClassVar[Essentials] = essential_flags.TRAIN
    examples: ClassVar[tuple[str, ...]] = essential_flags.TRAIN_EXAMPLES

    start: tyro.conf.Suppress[StartConfig | None] = None
    config: str | None = Field(None, description="YAML file of settings; <storage>/runs/NAME/config.yaml repeats the run NAME")
    list_recipes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(False, description="list all recipes and exit")
    list_models: str | None = Field(None, description="list all architectures, or those of timm that match timm:PATTERN, and exit")
    why: tyro.conf.Suppress[str] = ""


class FinetuneCommand(TrainConfig, ResumeFlags):
    """Fine-tune a model on other classes or images, and save the result as a new model that names its parent.

    Data, optimizer and seed are those of the parent's training, and learning rates are a fraction of the parent's. Flags override them.
    """

    essentials: ClassVar[Essentials] = essential_flags.FINETUNE
    examples: ClassVar[tuple[str, ...]] = essential_flags.FINETUNE_EXAMPLES

    recipe: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    model: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    start: tyro.conf.Suppress[StartConfig | None] = None
    parent: tyro.conf.Positional[str] = Field(description="model to start from: NAME, NAME@3, a run, or a path")
    freeze: FrozenPart = Field("none", description="layers to freeze: none, backbone (all but the head), or the first N stages")
    stage_decay: ShareOfRate = Field(1.0, description="learning rate of a stage, as a fraction of the rate of the stage above it")
    rate_factor: Positive = Field(0.1, description="factor for the parent's peak learning rates; --optimizer.… sets the rates themselves")


class TuneCommand(TrainConfig, SearchConfig, TrackingFlags):
    """Search for a better recipe for your images. The result is best.yaml, which train --config runs.

    The training flags hold for all trials; the search space, from the recipe or from --space FILE.yaml, is what varies.
    The same command, or --resume NAME, resumes an interrupted search.
    """

    essentials: ClassVar[Essentials] = essential_flags.TUNE
    examples: ClassVar[tuple[str, ...]] = essential_flags.TUNE_EXAMPLES

    name: str | None = Field(
        None, pattern=NAME_PATTERN, description="name of the search; default: derived from the settings, so that the same command resumes"
    )
    time_budget: str | None = Field(None, description="stop after this time, for example 90s, 30m or 2h; pauses do not count")  # type: ignore[assignment]
    start: tyro.conf.Suppress[StartConfig | None] = None
    config: str | None = Field(None, description="YAML file of training settings: the start of the search, and what all trials share")
    resume: str | None = Field(None, description="name of the search to resume; also pass --storage if it is not the default")
    show_space: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(False, description="print the search space as YAML and exit")
    train_best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        False, description="then train the best recipe for all epochs, save the model to the store and promote it according to --promote"
    )

    def train_config(self) -> TrainConfig:
        """The settings of training, the same for all trials."""
        return TrainConfig.model_validate(self.model_dump(include=set(TrainConfig.model_fields) - {"time_budget"}))

    def search_config(self) -> SearchConfig:
        """The settings of the search."""
        return SearchConfig.model_validate(self.model_dump(include=set(SearchConfig.model_fields)))


class FindLrCommand(TrainConfig):
    """Suggest a peak learning rate for your data, network and optimizer with a learning-rate range test (Smith 2017).

    One process runs the real training loop for some steps while all learning rates rise together. It saves the curve but no model.
    The training flags are those of train.
    """

    essentials: ClassVar[Essentials] = essential_flags.FIND_LR
    examples: ClassVar[tuple[str, ...]] = essential_flags.FIND_LR_EXAMPLES

    start: tyro.conf.Suppress[StartConfig | None] = None
    config: str | None = Field(None, description="YAML file of settings, for example <storage>/runs/NAME/config.yaml")
    steps: int = Field(100, ge=20, le=10_000, description="training steps; more steps give a smoother curve")
    lowest: Positive | None = Field(None, description="optimizer.lr of the first step; default: 0.001 times the configured rate")
    highest: Positive | None = Field(None, description="optimizer.lr of the last step; default: 100 times the configured rate")


def requested_list(arguments: Sequence[str]) -> str:
    """The list that `--list-recipes` or `--list-models [timm:PATTERN]` requests; empty without such a flag.

    Raises:
        ConfigError: if timm has no network that matches the pattern.
    """
    if "--list-recipes" in arguments:
        return describe_recipes()
    if "--list-models" not in arguments:
        return ""
    following = list(arguments)[list(arguments).index("--list-models") + 1 :][:1]
    if not following or following[0].startswith("-"):
        return describe_networks()
    from cifar_ray.models.timm_networks import list_timm

    if not (found := list_timm(following[0])):
        raise ConfigError(f"--list-models {following[0]}: timm has no such network")
    return "\n".join(found)


def parse_train_command(argv: Sequence[str] | None, prog: str) -> TrainCommand:
    """Parse the flags of `train`; `--resume NAME` loads the settings of the run NAME, and `--resume` those of the latest run.

    Raises:
        ConfigError: as `parse_over_recipe`, or if there is no such run.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not any(argument.partition("=")[0] == "--resume" for argument in arguments):
        return _set_reviews_until(parse_over_recipe(TrainCommand, arguments, prog), arguments)
    from cifar_ray.training.records.saved_runs import latest_run, saved_settings  # imports pyarrow

    storage = resolve_storage(peek(arguments, ("--storage",)).get("storage") or default_storage())
    if "--resume" in arguments:
        value = arguments.index("--resume") + 1
        if value == len(arguments) or arguments[value].startswith("-"):
            arguments.insert(value, latest_run(storage))
    run = peek(arguments, ("--resume",)).get("resume", "auto")
    saved = None if run in ("auto", "never") else saved_settings(run, storage)
    return _set_reviews_until(parse_over_recipe(TrainCommand, arguments, prog, saved), arguments)


def _set_reviews_until(command: CommandType, arguments: Sequence[str]) -> CommandType:
    if not command.with_reviews:
        if peek(arguments, ("--reviews-until",)):
            raise ConfigError("--reviews-until: has no effect without --with-reviews; add that flag, or leave out both")
        return command
    from cifar_ray.training.records.saved_runs import set_reviews_until  # imports pyarrow

    return set_reviews_until(command)


def parse_tune_command(argv: Sequence[str] | None, prog: str) -> TuneCommand:
    """Parse the flags of `tune`; `--resume NAME` loads the settings of the search NAME.

    Raises:
        ConfigError: as `parse_over_recipe`, or if there is no such search.
    """
    flags = peek(argv, ("--resume", "--storage"))
    saved: dict[str, Any] = {}
    if "resume" in flags:
        from cifar_ray.tuning.search_job import saved_settings

        settings = saved_settings(resolve_storage(flags.get("storage", default_storage())), flags["resume"])
        saved = settings["fixed"] | settings["search"] | {"resume": flags["resume"]}
    return parse_over_recipe(TuneCommand, argv, prog, saved)


def parse_finetune_command(argv: Sequence[str] | None, prog: str) -> tuple[FinetuneCommand, Bundle]:
    """Parse the flags of `finetune`; they override the settings that the child inherits from the parent's training.

    Returns:
        The command, and the parent.

    Raises:
        ConfigError: if a field is unknown or invalid; the message is one line that names the field.
        StoreError: if the parent does not exist.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_and_exit(FinetuneCommand, arguments, prog)
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"the first argument must be the model to start from: {prog} MODEL …")
    from cifar_ray.store import load_model
    from cifar_ray.store.mlflow_models import is_registered
    from cifar_ray.training.finetuning import child_name, inherited_settings

    reference = arguments[0]
    flags = peek(arguments[1:], ("--storage", "--dataset", "--data-dir", "--columns", "--rate-factor"))
    storage = resolve_storage(flags.get("storage") or default_storage())
    parent = load_model(reference, storage)
    given = {"parent": reference, "storage": storage} | {name: value for name, value in flags.items() if name == "rate_factor"}
    rate_factor = parse_config(FinetuneCommand, given).rate_factor
    data = {name: value for name, value in flags.items() if name in ("dataset", "data_dir", "columns")}
    if "data_dir" in data:
        data.setdefault("dataset", find_dataset(data["data_dir"]))
    defaults = parse_config(FinetuneCommand, inherited_settings(parent, data, rate_factor) | given)
    command: FinetuneCommand = parse(FinetuneCommand, arguments, prog, defaults)
    path = reference if is_registered(reference) else resolve_storage(reference) if "/" in reference else None
    start = StartConfig(model=path or parent.reference, freeze=command.freeze, stage_decay=command.stage_decay)
    changes = {"start": start, "model": parent.manifest.architecture.name, "save_as": command.save_as or child_name(parent, command)}
    return _set_reviews_until(command.model_copy(update=changes), arguments), parent


def parse_over_recipe(
    command_type: type[CommandType], argv: Sequence[str] | None, prog: str, saved: dict[str, Any] | None = None
) -> CommandType:
    """Parse flags; they override the settings of a file, which override the settings of a recipe.

    Args:
        command_type: training settings with the flags of a verb; its field `config` is the path of the file.
        argv: flags; `None` reads the command line of this process.
        prog: name of the program in the help text.
        saved: settings that override the recipe and that the file overrides.

    Raises:
        ConfigError: if a field is unknown or invalid; the message is one line that names the field.
    """
    flags = peek(argv, ("--recipe", "--config", "--dataset", "--data-dir", "--columns", "--task", "--model"))
    chosen = (saved or {}) | (_settings_in(flags["config"]) if "config" in flags else {}) | flags
    suited = choose_settings(chosen)
    values = merge_settings(suited.settings, chosen)
    if "why" in command_type.model_fields:
        values["why"] = suited.why
    command: CommandType = parse(command_type, argv, prog, parse_config(command_type, values))
    if command.model not in NETWORKS:
        if not command.model.startswith("timm:"):
            raise ConfigError(f"model: unknown architecture {command.model!r}. Available: {', '.join(NETWORKS)}, and timm's as timm:NAME")
        from cifar_ray.models import check_model  # imports torch

        check_model(command.model)
    return command


def _settings_in(file: str) -> dict[str, Any]:
    """Settings of a file. From the config of a run, `…/runs/NAME/config.yaml`, the name is removed, because a new run repeats it."""
    values = read_yaml(file)
    path = local_path(file).absolute()
    if path.parent.parent.name == "runs" and path.parent.name == values.get("name"):
        del values["name"]
        values.setdefault("draws", 1)  # the run is from an early release
    return values


def flags_of_train(arguments: Sequence[str], method: str) -> list[str]:
    """Flags for `train` from the flags of `find_lr`, quoted for a shell, without learning rates and the flags that only `find_lr` has.

    Args:
        arguments: flags that the user typed.
        method: method of the config; other methods than `scratch` become `finetune`, because a probe has no learning rate.
    """
    dropped = {"--steps", "--lowest", "--highest"} | ({"--method"} if method != "scratch" else set())
    kept, skips = [], False
    for argument in arguments:
        if argument.startswith("--"):
            name = argument.partition("=")[0].replace("_", "-")
            skips = name in dropped or re.fullmatch(r"--optimizer\.(\w+-)?lr", name) is not None
        if not skips:
            kept.append(shlex.quote(argument))
    return kept + (["--method", "finetune"] if method != "scratch" else [])

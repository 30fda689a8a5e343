"""The command of `completion`, and all commands that it completes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import tyro
from pydantic import Field

from cifar_ray.config import Config


class CompletionCommand(Config):
    """Print a script that completes `cifar-ray VERB …` in your shell.

    bash: add the line `eval "$(cifar-ray completion bash)"` to ~/.bashrc. zsh: save the script as `_cifar-ray` in a folder of $fpath.
    fish: save it as ~/.config/fish/completions/cifar-ray.fish.
    """

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh", "fish"]], tyro.conf.arg(metavar="SHELL")] = Field(
        description="bash, zsh or fish"
    )


def commands() -> dict[str, Any]:
    """The command class of each verb; a union if the verb has subcommands."""
    from cifar_ray.cli import check_flags, model_flags, serving, training_flags
    from cifar_ray.cli.commands import cache_commands, drift_command, key_commands, review_commands, store_commands

    return {
        "train": training_flags.TrainCommand,
        "tune": training_flags.TuneCommand,
        "evaluate": model_flags.EvaluateCommand,
        "compare": model_flags.CompareCommand,
        "stats": model_flags.StatsCommand,
        "check_labels": check_flags.CheckLabelsCommand,
        "finetune": training_flags.FinetuneCommand,
        "find_lr": training_flags.FindLrCommand,
        "predict": model_flags.PredictCommand,
        "calibrate": model_flags.CalibrateCommand,
        "quantize": model_flags.QuantizeCommand,
        "serve": serving.ServeCommand,
        "drift": drift_command.DriftCommand,
        "review": review_commands.ReviewCommands,
        "keys": key_commands.KeyCommands,
        "cache": cache_commands.CacheCommands,
        "store": store_commands.StoreCommands,
        "completion": CompletionCommand,
        "demo": serving.DemoCommand,
    }

"""`cifar-ray completion SHELL`: prints a script that completes verbs, subcommands and flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union

import tyro
from pydantic import Field
from tyro.conf import subcommand

from cifar_ray import cli
from cifar_ray.config import Config

PROG = "cifar-ray completion"


class CompletionCommand(Config):
    """Print a script that completes `cifar-ray VERB …` in your shell.

    bash: add the line `eval "$(cifar-ray completion bash)"` to ~/.bashrc. zsh: save the script as `_cifar-ray` in a folder of $fpath.
    fish: save it as ~/.config/fish/completions/cifar-ray.fish.
    """

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh", "fish"]], tyro.conf.arg(metavar="SHELL")] = Field(
        description="bash, zsh or fish"
    )


def commands() -> dict[str, Any]:
    """The command of each verb; a union where it has subcommands."""
    from cifar_ray.cli import cache_commands, key_commands, model_flags, serving, store_commands, training_flags

    return {
        "train": training_flags.TrainCommand,
        "tune": training_flags.TuneCommand,
        "evaluate": model_flags.EvaluateCommand,
        "compare": model_flags.CompareCommand,
        "stats": model_flags.StatsCommand,
        "finetune": training_flags.FinetuneCommand,
        "find_lr": training_flags.FindLrCommand,
        "predict": model_flags.PredictCommand,
        "calibrate": model_flags.CalibrateCommand,
        "quantize": model_flags.QuantizeCommand,
        "serve": serving.ServeCommand,
        "keys": key_commands.KeyCommands,
        "cache": cache_commands.CacheCommands,
        "store": store_commands.StoreCommands,
        "completion": CompletionCommand,
        "demo": serving.DemoCommand,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script; `argv` is the flags, or `None` for those of this process."""
    command: CompletionCommand = cli.parse(CompletionCommand, argv, PROG)
    verbs = Union[tuple(Annotated[verb, subcommand(name)] for name, verb in commands().items())]  # type: ignore[valid-type]  # noqa: UP007
    tyro.cli(verbs, args=["--tyro-print-completion", command.shell], prog="cifar-ray")  # type: ignore[call-overload]
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

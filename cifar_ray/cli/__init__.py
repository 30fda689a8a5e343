"""Command lines: flags, errors and terminal output. Only verbs import this package."""

from cifar_ray.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR, run
from cifar_ray.cli.logs import show_log
from cifar_ray.cli.arguments.parsing import parse, peek
from cifar_ray.cli.training_flags import (
    FindLrCommand,
    FinetuneCommand,
    TrainCommand,
    TuneCommand,
    parse_finetune_command,
    parse_over_recipe,
    parse_train_command,
    parse_tune_command,
    requested_list,
)

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_USER_ERROR",
    "FindLrCommand",
    "FinetuneCommand",
    "TrainCommand",
    "TuneCommand",
    "parse",
    "parse_finetune_command",
    "parse_over_recipe",
    "parse_train_command",
    "parse_tune_command",
    "peek",
    "requested_list",
    "run",
    "show_log",
]

"""Command lines: flags, errors and terminal output. Only verbs import this package."""

from cifar_ray.cli.arguments.parsing import parse, peek
from cifar_ray.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR, end, run
from cifar_ray.cli.logs import show_log

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_USER_ERROR", "end", "parse", "peek", "run", "show_log"]

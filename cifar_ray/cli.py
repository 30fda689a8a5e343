"""Command lines: config → flags, errors → one line and an exit code. The one place for both."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro
from pydantic import ValidationError

from cifar_ray.config import describe
from cifar_ray.errors import CifarRayError, ConfigError, TrainingError

Parsed = TypeVar("Parsed")

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_BOX_DRAWING = re.compile(r"[─-╿]+")
_NESTED_ERROR = re.compile(r"Error parsing (\S+): \d+ validation errors? for \w+ (?:(\S+) )?(.*?) \[type=.*?input_value=(.*?), input_type")


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
    """Folds tyro's box of several lines into one, and a nested config's error into `field: message`."""
    text = " ".join(_BOX_DRAWING.sub(" ", report).split())
    nested = _NESTED_ERROR.search(text)
    if nested:
        where, field, message, value = nested.groups()
        return f"{where}.{field}: {message} (got {value})" if field else f"{where}: {message.removeprefix('Value error, ')}"
    for noise in ("Argument helptext:", "For full helptext"):
        text = text.partition(noise)[0]
    return text.strip().removeprefix("Value error ").removeprefix("Unrecognized options ")

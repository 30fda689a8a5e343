"""Parses command lines with tyro, and reports a wrong flag in one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

import tyro
from pydantic import ValidationError

from cifar_ray.config import describe
from cifar_ray.config.documents import in_words
from cifar_ray.errors import ConfigError

_BOX_DRAWING = re.compile(r"[─-╿]+")
_VALIDATION_ERROR = re.compile(
    r"Error parsing (?P<config>\S+): \d+ validation errors? for \w+ "
    r"(?:Value error, (?P<combination>.*?)|(?P<field>[\w.]+) (?P<message>.*?)) \[type=.*?input_value=(?P<value>.*?), input_type"
)

_UNKNOWN_FLAG = re.compile(r"Unrecognized options:? (?P<flag>--[A-Za-z][^\s,]*)(?:.*?Perhaps you meant: ?(?P<nearest>--[A-Za-z][\w.-]*))?")


def parse(command: Any, argv: Sequence[str] | None, prog: str, default: Any = None) -> Any:
    """Parses flags into a command.

    Args:
        command: a pydantic model, a dataclass, a function, or a union of them.
        argv: flags; `None` reads the command line of this process.
        prog: name of the program in the help text.
        default: a command whose values are the defaults of the flags.

    Raises:
        ConfigError: one line that names the flag that is unknown, missing or impossible.
    """
    options = {} if default is None else {"default": default}
    rejected = io.StringIO()
    try:
        with contextlib.redirect_stderr(rejected):
            return tyro.cli(command, args=argv, prog=prog, **options)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(rejected.getvalue())) from None


def peek(argv: Sequence[str] | None, flags: Sequence[str]) -> dict[str, str]:
    """Reads some flags before the others are parsed, because they decide the defaults of the others.

    Args:
        argv: flags; `None` reads the command line of this process.
        flags: the flags to read, with their dashes.

    Returns:
        Their values by name, without dashes; a flag that is not given is missing.

    Raises:
        ConfigError: if one of them has no value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in flags:
        parser.add_argument(flag, default=argparse.SUPPRESS)
    try:
        return vars(parser.parse_known_args(argv)[0])
    except argparse.ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from None


def _one_line(report: str) -> str:
    """Folds tyro's box of several lines into one line, and a validation error inside it into `field: message`."""
    text = " ".join(_BOX_DRAWING.sub(" ", report).split())
    invalid = _VALIDATION_ERROR.search(text)
    if invalid and invalid["combination"]:
        return invalid["combination"]
    if invalid:
        nested = f"{invalid['config']}." if invalid["config"].islower() else ""
        return f"{nested}{invalid['field']}: {in_words(invalid['message'])} (got {invalid['value']})"
    unknown = _UNKNOWN_FLAG.search(text)
    if unknown:
        return f"{unknown['flag']}: unknown flag" + (f". Did you mean {unknown['nearest']}?" if unknown["nearest"] else "")
    for noise in ("Got errors:", "Argument helptext:", "For full helptext"):
        text = text.partition(noise)[0]
    return text.strip().removeprefix("Value error ").removeprefix("Unrecognized options ")

"""Parse command lines with tyro, and report a wrong flag in one line."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any

import tyro
from pydantic import ValidationError

from cifar_ray.cli.arguments.flag_table import Command, flags_of, subcommands
from cifar_ray.cli.arguments.help_pages import help_page, usage
from cifar_ray.config import describe, local_path
from cifar_ray.config.documents import in_words
from cifar_ray.config.version import VERSION
from cifar_ray.errors import ConfigError

_BOX_DRAWING = re.compile(r"[─-╿]+|-{5,}")
_VALIDATION_ERROR = re.compile(
    r"Error parsing (?P<config>\S+): \d+ validation errors? for \w+ "
    r"(?:Value error, (?P<combination>.*?)|(?P<field>[\w.]+) (?P<message>.*?)) \[type=.*?input_value=(?P<value>.*?), input_type"
)
_WRONG_CHOICE = re.compile(r"invalid choice '(?P<value>.*?)' for argument '(?P<flag>\S+)'\. Expected one of \((?P<choices>.*?)\)")
_NO_NUMBER = re.compile(r"Error parsing (?P<flag>--\S+?):.*?(?P<kind>int\(\)|float)[^:]*: '(?P<value>.*?)'")
_NUMBERS = {"int()": "a whole number", "float": "a number"}
_MISSING = re.compile(r"Required options|Missing value for argument '(?!-)")
_NO_VALUE = re.compile(r"Missing value for argument '(?P<flag>-.*?)'")
_UNEXPECTED = re.compile(r"Unrecognized options?: (?P<words>.*?)(?: For full helptext.*)?$")
_HELP = ("-h", "--help", "--help-all")


def parse(command: Any, argv: Sequence[str] | None, prog: str, default: Any = None) -> Any:
    """Parse flags into a command, or show the help page or the version and exit.

    Args:
        command: a pydantic model, or a union of subcommands.
        argv: flags; `None` reads the command line of this process.
        prog: name of the program in the help text.
        default: a command whose values are the defaults of the flags.

    Raises:
        ConfigError: if a flag is unknown, missing or invalid; the message is one line that names the flag.
        SystemExit: with 0, after help or version.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen, program = _subcommand(command, arguments, prog)
    show_and_exit(chosen, arguments, program, default)
    check_flags(chosen, arguments)
    options = {} if default is None else {"default": default}
    rejected = io.StringIO()
    try:
        with contextlib.redirect_stderr(rejected):
            parsed = tyro.cli(command, args=arguments, prog=prog, **options)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None
    except SystemExit:
        report = _unfold(rejected.getvalue())
        if _MISSING.search(report):
            raise ConfigError(f"an argument is missing; expected: {usage(chosen, program)}") from None
        raise ConfigError(_one_line(report)) from None
    _check_data_dir(arguments)
    return parsed


def show_and_exit(command: Any, arguments: Sequence[str], prog: str, default: Any = None) -> None:
    """Show the help page or the version and exit, if the arguments request it; return otherwise."""
    if "--version" in arguments:
        print(f"cifar-ray {VERSION}")
        raise SystemExit(0)
    if set(_HELP) & set(arguments):
        print(help_page(command, prog, default, show_all="--help-all" in arguments), end="")
        raise SystemExit(0)


def check_flags(command: Any, arguments: Sequence[str]) -> None:
    """Reject flags that a command does not have.

    Raises:
        ConfigError: if there is such a flag; the message is one line that suggests the nearest flag.
    """
    known = [*_HELP[1:], *(name for flag in flags_of(command) for name in (flag.name, flag.negative) if name.startswith("--"))]
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name != "--" and name not in known:
            parts = [flag for flag in known if flag.rpartition(".")[2] == name.strip("-")]
            nearest = (parts or difflib.get_close_matches(name, known, 1, 0.7))[:1]
            raise ConfigError(f"{name}: unknown flag" + (f". Did you mean {nearest[0]}?" if nearest else "; --help shows the flags"))


def _check_data_dir(arguments: Sequence[str]) -> None:
    """Reject a folder or table that does not exist, even if the data set is cached, so that the folder would never be read."""
    folder = peek(arguments, ("--data-dir",)).get("data_dir")
    if folder is not None and "://" not in folder and not local_path(folder).exists():
        raise ConfigError(f"--data-dir {folder}: folder not found")


def peek(argv: Sequence[str] | None, flags: Sequence[str]) -> dict[str, str]:
    """Read some flags before the others are parsed, because they determine the defaults of the others.

    Args:
        argv: flags; `None` reads the command line of this process.
        flags: the flags to read, with their dashes.

    Returns:
        Values by name of the flag, without leading dashes and with `_` for `-`; flags that are not given are missing.

    Raises:
        ConfigError: if one of the flags has no value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in flags:
        parser.add_argument(flag, default=argparse.SUPPRESS)
    try:
        return vars(parser.parse_known_args(argv)[0])
    except argparse.ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from None


def _subcommand(command: Any, arguments: Sequence[str], prog: str) -> tuple[Command, str]:
    """The subcommand that the first argument names, and its program name; for a command without subcommands, the command itself."""
    members = subcommands(command)
    if not members or (arguments and arguments[0] in (*_HELP, "--version")):
        return command, prog
    name = arguments[0] if arguments else ""
    if name not in members:
        nearest = difflib.get_close_matches(name, members, 1)
        hint = f". Did you mean {nearest[0]}?" if nearest else f". Available: {', '.join(members)}"
        raise ConfigError((f"{name}: unknown subcommand" if name else f"{prog} needs a subcommand") + hint)
    return members[name], f"{prog} {name}"


def _unfold(report: str) -> str:
    return " ".join(_BOX_DRAWING.sub(" ", report).split())


def _one_line(text: str) -> str:
    """Shorten tyro's report to one line, and a validation error in it to `field: message`."""
    invalid = _VALIDATION_ERROR.search(text)
    if invalid and invalid["combination"]:
        return invalid["combination"]
    if invalid:
        nested = f"{invalid['config']}." if invalid["config"].islower() else ""
        return f"{nested}{invalid['field']}: {in_words(invalid['message'])} (got {invalid['value']})"
    if wrong := _WRONG_CHOICE.search(text):
        return f"{wrong['flag']} {wrong['value']}: expected one of {wrong['choices'].replace(chr(39), '')}"
    if wrong := _NO_NUMBER.search(text):
        return f"{wrong['flag']} {wrong['value']}: expected {_NUMBERS[wrong['kind']]}"
    if flag := _NO_VALUE.search(text):
        return f"{flag['flag']} needs a value"
    if unexpected := _UNEXPECTED.search(text):
        return f"unexpected argument: {unexpected['words']}"
    for noise in ("Got errors:", "Argument helptext:", "For full helptext"):
        text = text.partition(noise)[0]
    return text.strip().removeprefix("Value error ")

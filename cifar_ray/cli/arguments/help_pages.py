"""Help pages: a short page with the most important flags, grouped and with examples, and a page with all flags."""

from __future__ import annotations

import argparse
import inspect
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from cifar_ray.cli.arguments.flag_table import Command, Flag, flags_of, subcommands

Essentials = Mapping[str, Mapping[str, str]]
"""Flags that matter, by heading: flag → an example of its value; empty for a flag that needs none."""

_MAX_WIDTH, _NAME_WIDTH = 100, 26


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Breaks lines only between words, so that a flag is never split."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def help_page(command: Any, prog: str, default: BaseModel | None = None, *, show_all: bool = False) -> str:
    """The help page of a command.

    Args:
        command: a pydantic model, or a union of subcommands. If it has `essentials`, only these flags are shown; `examples` are complete
            commands for the end of the page.
        prog: name of the program.
        default: supplies the defaults.
        show_all: show all flags.
    """
    if members := subcommands(command):
        rows = "\n".join(f"  {name:12}{_summary(member)}" for name, member in members.items())
        return f"usage: {prog} SUBCOMMAND …\n\n{rows}\n\nHelp for a subcommand: {prog} SUBCOMMAND --help\n"
    flags = list(flags_of(command, default))
    positionals = [flag for flag in flags if flag.is_positional]
    essentials: Essentials | None = None if show_all else getattr(command, "essentials", None)
    examples: Sequence[str] = getattr(command, "examples", ())
    formatter = partial(_Formatter, max_help_position=_NAME_WIDTH, width=_width())
    page = argparse.ArgumentParser(
        prog=prog,
        usage=f"{usage(command, prog)} [FLAGS]",
        description="\n\n".join(textwrap.fill(" ".join(text.split()), _width()) for text in (inspect.getdoc(command) or "").split("\n\n")),
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else None,
        formatter_class=formatter,
        add_help=False,
    )
    if positionals:
        _add(page, "arguments", [(flag, "") for flag in positionals])
    if essentials is None:
        for topic in dict.fromkeys(flag.topic for flag in flags):
            _add(page, topic or "flags", [(flag, "") for flag in flags if flag.topic == topic and not flag.is_positional])
    else:
        by_name = {flag.name: flag for flag in flags}
        for heading, names in essentials.items():
            _add(page, heading, [(by_name[name], example) for name, example in names.items()])
    more = [Flag("--help", "", "show this page"), Flag("--version", "", "show the version")]
    if essentials is not None:
        more.insert(1, Flag("--help-all", "", f"show all {len(flags)} flags"))
    _add(page, "help", [(flag, "") for flag in more])
    return page.format_help()


def usage(command: Command, prog: str) -> str:
    """The program and its positional arguments; optional ones are in brackets."""
    positionals = [flag for flag in flags_of(command) if flag.is_positional]
    return " ".join([prog, *(flag.name if flag.is_required else f"[{flag.name}]" for flag in positionals)])


def _add(page: argparse.ArgumentParser, heading: str, flags: Sequence[tuple[Flag, str]]) -> None:
    group = page.add_argument_group(heading)
    for flag, example in flags:
        notes = [f"default: {flag.default}"] if flag.default else []
        notes += [f"e.g. {flag.name} {example}"] if example else []
        text = (f"{flag.text} ({'; '.join(notes)})" if notes else flag.text).replace("%", "%%")
        if flag.is_positional:
            group.add_argument(flag.name, help=text)
        else:
            names = [flag.name, flag.negative] if flag.negative else [flag.name]
            options: dict[str, Any] = {"metavar": flag.metavar} if flag.metavar else {"action": "store_true"}
            group.add_argument(*names, help=text, **options)


def _summary(command: Command) -> str:
    return (inspect.getdoc(command) or "").partition(". ")[0].partition("\n")[0].rstrip(".")


def _width() -> int:
    return min(_MAX_WIDTH, shutil.get_terminal_size().columns) - 2

"""`cifar-ray completion SHELL`: prints a script that completes verbs, subcommands and flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Union

import tyro
from tyro.conf import subcommand

from cifar_ray import cli
from cifar_ray.cli.completion_commands import CompletionCommand, commands

PROG = "cifar-ray completion"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script; `argv` contains the flags, `None` means the flags of this process."""
    command: CompletionCommand = cli.parse(CompletionCommand, argv, PROG)
    verbs = Union[tuple(Annotated[verb, subcommand(name)] for name, verb in commands().items())]  # type: ignore[valid-type]  # noqa: UP007
    tyro.cli(verbs, args=["--tyro-print-completion", command.shell], prog="cifar-ray")  # type: ignore[call-overload]
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

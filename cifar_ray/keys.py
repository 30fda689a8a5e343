"""`python -m cifar_ray.keys`: adds, lists and revokes the API keys of a server."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.commands.key_commands import KeyCommand, KeyCommands

PROG = "cifar-ray keys"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; `argv` contains the flags, `None` means the flags of this process."""
    command: KeyCommand = cli.parse(KeyCommands, argv, PROG)
    command.run()
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

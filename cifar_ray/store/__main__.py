"""`python -m cifar_ray.store`: list, show, promote, try, delete, export and import models."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.commands.stage_commands import StoreCommand
from cifar_ray.cli.commands.store_commands import StoreCommands
from cifar_ray.store.registry import ModelStore

PROG = "cifar-ray store"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; `argv` holds the flags, `None` means those of this process."""
    command: StoreCommand = cli.parse(StoreCommands, argv, PROG)
    command.run(ModelStore(command.storage))
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

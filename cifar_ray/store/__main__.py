"""`python -m cifar_ray.store`: lists, shows, promotes, deletes, exports and imports models."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.store_commands import StoreCommand, StoreCommands
from cifar_ray.store.registry import ModelStore

PROG = "python -m cifar_ray.store"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; `argv` is the flags, or `None` for those of this process."""
    command: StoreCommand = cli.parse(StoreCommands, argv, PROG)
    command.run(ModelStore(command.storage))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

"""`python -m cifar_ray.cache`: shows and clears the cache of decoded pictures and features on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.commands.cache_commands import CacheCommands, Clear, List

PROG = "cifar-ray cache"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; `argv` contains the flags, `None` means the flags of this process."""
    command: List | Clear = cli.parse(CacheCommands, argv, PROG)
    command.run()
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

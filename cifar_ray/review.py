"""`python -m cifar_ray.review`: lists, exports and deletes the pictures that a server captured."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.commands.review_commands import ReviewCommand, ReviewCommands

PROG = "cifar-ray review"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; `argv` contains the flags, `None` means the flags of this process."""
    command: ReviewCommand = cli.parse(ReviewCommands, argv, PROG)
    command.run()
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

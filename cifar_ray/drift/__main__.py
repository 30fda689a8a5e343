"""`python -m cifar_ray.drift MODEL`: tell whether the pictures in requests to a model have changed."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.commands.drift_command import DriftCommand

PROG = "cifar-ray drift"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare recent pictures with the first ones; `argv` holds the flags, `None` means those of this process."""
    command: DriftCommand = cli.parse(DriftCommand, argv, PROG)
    return command.run()


if __name__ == "__main__":
    cli.end(cli.run(main))

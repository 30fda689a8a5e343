"""`cifar-ray demo`: trains a model on built-in images, serves it, sends it a test picture, and stops everything."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.serving import DemoCommand, run_demo

PROG = "cifar-ray demo"
TRAIN_FLAGS = "--dataset digits --epochs 8"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; `argv` contains the flags, `None` means the flags of this process."""
    run_demo(cli.parse(DemoCommand, argv, PROG), TRAIN_FLAGS)
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

"""`cifar-ray serve [MODEL]`: serves a model over HTTP with the settings that `make serve` uses."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.serving import ServeCommand
from cifar_ray.cluster.serve_command import become_serve_run, serve_config

PROG = "cifar-ray serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Serves as the flags say; the command line's own where `argv` is `None`."""
    command: ServeCommand = cli.parse(ServeCommand, argv, PROG)
    model = command.check()
    config = serve_config(command.arguments(), command.host, command.port)
    print(f"starting the server for {model}", file=sys.stderr)
    become_serve_run(config)


if __name__ == "__main__":
    sys.exit(cli.run(main))

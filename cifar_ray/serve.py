"""`cifar-ray serve [MODEL]`: serves a model over HTTP with the settings that `make serve` uses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from cifar_ray import cli
from cifar_ray.cli.output import liveness
from cifar_ray.cli.serving import ServeCommand
from cifar_ray.cluster.serve_command import describe, serve_until_signal

PROG = "cifar-ray serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a model; `argv` contains the flags, `None` means the flags of this process."""
    command: ServeCommand = cli.parse(ServeCommand, argv, PROG)
    print(f"starting the server for {command.check()}", file=sys.stderr, flush=True)
    say_ready = partial(_say_ready, grpc_port=command.grpc_port)
    return 128 + serve_until_signal(command.arguments(), command.host, command.port, liveness.begin, say_ready, command.grpc_port)


def _say_ready(url: str, model: str, grpc_port: int | None = None) -> None:
    liveness.rest()
    print(describe(url, model, grpc_port), file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.end(cli.run(main))

"""`python -m cifar_ray.train`: trains a model with Ray Train, saves it to the store and promotes it if it is good enough."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.training_flags import parse_train_command, requested_list

PROG = "cifar-ray train"


def main(argv: Sequence[str] | None = None) -> int:
    """Train a model; `argv` contains the flags, `None` means the flags of this process."""
    if listing := requested_list(sys.argv[1:] if argv is None else argv):
        print(listing)
        return 0
    command = parse_train_command(argv, PROG)
    if command.why:
        print(command.why, file=sys.stderr, flush=True)

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.cli.output.training_progress import train_with_progress  # imports torch, too slow for --help and lists
    from cifar_ray.training import job

    cli.show_log()
    with ProgressDisplay() as display:
        config, splits = job.load_data(command, display.start, display.write)
    print(train_with_progress(job.with_name(config, splits), splits, command.track, command.resume).summary())
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

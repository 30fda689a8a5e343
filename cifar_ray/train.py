"""`python -m cifar_ray.train`: trains a model with Ray Train, saves it to the store and promotes it if it is good enough."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.data import open_splits
from cifar_ray.recipes import describe_recipes
from cifar_ray.training import job

PROG = "python -m cifar_ray.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains a model; `argv` is the flags, or `None` for those of this process."""
    if "--list-recipes" in (sys.argv[1:] if argv is None else argv):
        print(describe_recipes())
        return 0
    command = cli.parse_train_command(argv, PROG)

    from cifar_ray.cli.terminal import ProgressDisplay
    from cifar_ray.cli.training_progress import train_with_progress  # imports torch, seconds that --help and --list-recipes do without
    from cifar_ray.data.batches.loader import check_batch_size
    from cifar_ray.models import list_models

    if command.list_models:
        print("\n".join(list_models()))
        return 0
    cli.show_log()
    with ProgressDisplay() as display:
        splits = open_splits(command, display.start)
    check_batch_size(command.batch_size, len(splits.train), command.max_workers)
    print(train_with_progress(job.with_name(command, splits), splits, command.track, command.resume).summary())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

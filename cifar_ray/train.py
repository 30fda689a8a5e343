"""`python -m cifar_ray.train`: trains through Ray Train, keeps the model, promotes it if it earned that."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.data import open_splits
from cifar_ray.recipes import describe_recipes
from cifar_ray.training import job

PROG = "python -m cifar_ray.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the flags say; the command line's own where `argv` is `None`."""
    if "--list-recipes" in (sys.argv[1:] if argv is None else argv):
        print(describe_recipes())
        return 0
    command = cli.parse_train_command(argv, PROG)

    from cifar_ray.data.batches.loader import check_batch_size  # brings torch, seconds that the list of recipes does without
    from cifar_ray.models import list_models

    if command.list_models:
        print("\n".join(list_models()))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # decoding, and files that were skipped
    splits = open_splits(command)
    check_batch_size(command.batch_size, len(splits.train), command.max_workers)
    from cifar_ray.training.records.progress import ConsoleProgress

    progress = ConsoleProgress(command.epochs, len(splits.train))
    print(job.run(job.with_name(command, splits), splits, progress, command.track, command.resume).summary())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

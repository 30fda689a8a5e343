"""`python -m cifar_ray.finetune MODEL`: fine-tunes a model on other classes or images, and saves the result as a new model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.training_flags import parse_finetune_command

PROG = "cifar-ray finetune"


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune a model; `argv` contains the flags, `None` means the flags of this process."""
    command, parent = parse_finetune_command(argv, PROG)

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.cli.output.training_progress import train_with_progress  # imports torch, too slow for --help
    from cifar_ray.data import open_splits
    from cifar_ray.data.batches.shares import check_batch_size
    from cifar_ray.training import finetuning, job

    cli.show_log()
    with ProgressDisplay() as display:
        splits = open_splits(command, display.start)
    images = len(splits.train)
    batch_size = command.batch_size if cli.peek(argv, ("--batch-size",)) else finetuning.fit_batch_size(command.batch_size, images)
    check_batch_size(batch_size, images, command.max_workers)
    config = job.with_name(command.model_copy(update={"batch_size": batch_size}), splits)
    print(finetuning.describe_trained_part(config, parent, splits.train.class_names), file=sys.stderr)
    if warning := finetuning.warn_of_overlap(parent, config, splits):
        print(warning, file=sys.stderr)
    result = train_with_progress(config, splits, command.track, command.resume)
    print(result.summary())
    if config.with_reviews:
        print(finetuning.compare_on_reviews((parent, result.saved.bundle), config.storage))
    print(f"parent {parent.reference} is unchanged; {result.saved.bundle.reference} can be served beside it")
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

"""`python -m cifar_ray.find_lr`: suggests a peak learning rate, with a learning-rate range test on the real training loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.training_flags import FindLrCommand, flags_of_train, parse_over_recipe

PROG = "cifar-ray find_lr"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the range test; `argv` contains the flags, `None` means the flags of this process."""
    command = parse_over_recipe(FindLrCommand, argv, PROG)

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.data import load_splits
    from cifar_ray.data.batches.shares import check_batch_size
    from cifar_ray.reports.lr_report import write_report
    from cifar_ray.training import job
    from cifar_ray.tuning.lr_range import learning_rate_flags
    from cifar_ray.tuning.lr_suggestion import MEANINGS, ended_falling, read_rates, run_test_around_rate

    cli.show_log()
    with ProgressDisplay() as display:
        splits = load_splits(command, display.start)
    check_batch_size(command.batch_size, len(splits.train), 1)
    config = job.with_name(command, splits)
    with ProgressDisplay("steps") as display:
        display.start("learning rate", command.steps)
        test = run_test_around_rate(
            config,
            splits,
            lowest=command.lowest,
            highest=command.highest,
            steps=command.steps,
            on_step=lambda number, rate, loss: display.update(f"lr {rate:.2g} loss {loss:.3f}", number),
        )
    readings = read_rates(test, config)
    for name, value in readings.items():
        print(f"{name:10} {value:<8.3g} {MEANINGS[name]}")
    if ended_falling(test):
        print(f"the loss still fell at {test.rates[-1]:.3g}: pass a higher --highest")
    print(f"report     {write_report(config, splits, test, readings, MEANINGS)}")
    if config.method != "scratch":
        print("method     the rate is for --method finetune, because a probe has none")
    flags = flags_of_train(sys.argv[1:] if argv is None else argv, config.method)
    print(f"use        cifar-ray train {' '.join([*flags, learning_rate_flags(config, test.edge)])}")
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))

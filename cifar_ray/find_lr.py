"""`python -m cifar_ray.find_lr`: suggests a peak learning rate, by a range test on the real training loop."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import tyro
from pydantic import Field
from tqdm import tqdm

from cifar_ray import cli
from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import Positive, StartConfig, TrainConfig
from cifar_ray.data import load_splits
from cifar_ray.data.batches.loader import check_batch_size
from cifar_ray.training import job

PROG = "python -m cifar_ray.find_lr"

_MEANINGS = {
    "edge": "up to here the loss falls: the suggestion for a peak rate",
    "steepest": "where the loss falls fastest, more cautious",
    "valley": "the middle of the longest fall, for a rate that stays constant",
    "configured": "of the recipe, the file or the flags",
}
_DECADES_BELOW, _DECADES_ABOVE = 1e-3, 1e2


class FindLrCommand(TrainConfig):
    """Suggests a peak learning rate for your data, network and optimizer, by a range test (Smith 2017) on the real training loop.

    Takes the flags of train. One process trains for some steps while all rates rise together; nothing is kept but the curve.
    """

    start: tyro.conf.Suppress[StartConfig | None] = None
    config: str | None = Field(None, description="YAML of settings, e.g. <storage>/runs/<name>/config.yaml")
    steps: int = Field(100, ge=20, le=10_000, description="of training; more give a smoother curve")
    lowest: Positive | None = Field(None, description="optimizer.lr of the first step; default: a thousandth of the recipe's")
    highest: Positive | None = Field(None, description="optimizer.lr of the last step; default: a hundred times the recipe's")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the test as the flags say; the command line's own where `argv` is `None`."""
    command = cli.parse_over_recipe(FindLrCommand, argv, PROG)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # decoding, and files that were skipped
    splits = load_splits(command)
    check_batch_size(command.batch_size, len(splits.train), 1)
    config = job.with_name(command, splits)

    import torch  # with what follows, seconds: mistakes are told before

    from cifar_ray.reports.lr_report import write_report
    from cifar_ray.tuning.lr_range import learning_rate_flags, run_range_test

    rate = config.optimizer.lr
    with tqdm(total=command.steps, unit="step", file=sys.stderr, disable=None, dynamic_ncols=True) as bar:

        def on_step(number: int, rate: float, loss: float) -> None:
            bar.set_description(f"lr {rate:.2g} loss {loss:.3f}", refresh=False)
            bar.update(number - bar.n)

        prepare_process()
        test = run_range_test(
            config,
            splits,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            lowest=command.lowest or rate * _DECADES_BELOW,
            highest=command.highest or rate * _DECADES_ABOVE,
            steps=command.steps,
            on_step=on_step,
        )
    readings = {"edge": test.edge, "steepest": test.steepest, "valley": test.valley, "configured": rate}
    for name, value in readings.items():
        print(f"{name:10} {value:<8.3g} {_MEANINGS[name]}")
    if test.edge > test.rates[-1] / 2 and not test.diverged:
        print(f"the loss still fell at {test.rates[-1]:.3g}: pass a higher --highest")
    print(f"report     {write_report(config, splits, test, readings, _MEANINGS)}")
    print(f"use        python -m cifar_ray.train {learning_rate_flags(config, test.edge)} …")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

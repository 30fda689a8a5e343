"""Suggest a learning rate: run a range test around the configured rate, and read suggestions from the result."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig
from cifar_ray.data import DatasetSplits
from cifar_ray.errors import TrainingError, advising_on_memory
from cifar_ray.training.steps.micro_batches import memory_advice
from cifar_ray.tuning.lr_range import RangeTest, run_range_test

MEANINGS = {
    "edge": "the loss falls up to this rate: the suggested peak rate",
    "steepest": "the loss falls fastest at this rate: a more cautious choice",
    "valley": "middle of the longest fall: for a rate that stays constant",
    "configured": "rate of the recipe, the file or the flags",
}
_LOWEST_FACTOR, _HIGHEST_FACTOR = 1e-3, 1e2


def run_test_around_rate(
    config: TrainConfig,
    splits: DatasetSplits,
    *,
    lowest: float | None,
    highest: float | None,
    steps: int,
    on_step: Callable[[int, float, float], None],
) -> RangeTest:
    """Run a range test in this process, on a GPU if there is one.

    Args:
        config: config of the training for which a learning rate is wanted.
        splits: the data.
        lowest: `optimizer.lr` of the first step; `None` for a thousandth of the configured rate.
        highest: `optimizer.lr` of the last step; `None` for a hundred times the configured rate.
        steps: number of training steps, at least 20.
        on_step: called after each step, see `run_range_test`.

    Raises:
        ConfigError: see `run_range_test`.
        TrainingError: if there is too little memory.
    """
    prepare_process()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with advising_on_memory(memory_advice(config, device, splits.train.image_size_px), TrainingError):
        return run_range_test(
            config,
            splits,
            device=device,
            lowest=lowest or config.optimizer.lr * _LOWEST_FACTOR,
            highest=highest or config.optimizer.lr * _HIGHEST_FACTOR,
            steps=steps,
            on_step=on_step,
        )


def read_rates(test: RangeTest, config: TrainConfig) -> dict[str, float]:
    """Learning rates by the names that `MEANINGS` explains."""
    return {"edge": test.edge, "steepest": test.steepest, "valley": test.valley, "configured": config.optimizer.lr}


def ended_falling(test: RangeTest) -> bool:
    """Whether the loss still fell at the highest rate, so that the real edge is above the tested range."""
    return not test.diverged and test.edge > float(test.rates[-1]) / 2

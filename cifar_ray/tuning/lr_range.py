"""The learning-rate range test: how the loss behaves while the rate rises from far too low to far too high."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.config import TrainConfig
from cifar_ray.data.batches.loader import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError
from cifar_ray.training.loop.optimizers import set_learning_rate
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.weights.initial_network import load_parent

_DIVERGED = 3.0  # times the lowest running mean
_RECENT = 0.9  # weight of the past in the running mean that decides about divergence
_SMOOTHED_SHARE = 0.03  # of all steps: the width of the average that is looked at
_LEAST_STEPS = 20

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RangeTest:
    """What a range test measured.

    Attributes:
        rates: float64 `[N]`, ascending by a constant factor: `optimizer.lr` of each step; other rates rise in the same proportion.
        losses: float64 `[N]`, training loss of each step, nats an image.
        diverged: whether the loss rose so far that the test ended early.
    """

    rates: Curve
    losses: Curve
    diverged: bool

    @cached_property
    def smoothed(self) -> Curve:
        """The losses averaged over neighbours on both sides, so that nothing is moved to higher rates."""
        sigma = _SMOOTHED_SHARE * len(self.losses)
        offsets = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
        weights = np.exp(-0.5 * (offsets / sigma) ** 2)
        return np.convolve(np.pad(self.losses, len(offsets) // 2, mode="edge"), weights / weights.sum(), mode="valid")

    @property
    def edge(self) -> float:
        """The rate up to which the loss falls: the upper bound of Smith (2017, arXiv 1506.01186, section 3.3).

        A peak rate, which the schedule reaches and leaves, may go that far.
        """
        return float(self.rates[self.smoothed.argmin()])

    @property
    def steepest(self) -> float:
        """The rate at which the loss falls fastest a decade, as fast.ai reads the test."""
        first = int(2 * _SMOOTHED_SHARE * len(self.losses))  # before it, half of each average is missing
        falling = slice(first, max(first + 3, int(self.smoothed.argmin()) + 1))
        return float(self.rates[falling][np.gradient(self.smoothed[falling], np.log(self.rates[falling])).argmin()])

    @property
    def valley(self) -> float:
        """The middle of the longest fall, which noise disturbs least (fast.ai's `valley`)."""
        start, end = longest_fall(self.smoothed)
        return float(self.rates[(start + end) // 2])


def longest_fall(losses: Sequence[float] | Curve) -> tuple[int, int]:
    """First and last index of the longest subsequence that only falls."""
    length, before = [1] * len(losses), [-1] * len(losses)
    for i, loss in enumerate(losses):
        for j in range(i):
            if loss < losses[j] and length[j] >= length[i]:
                length[i], before[i] = length[j] + 1, j
    end = start = int(np.argmax(length))
    while before[start] >= 0:
        start = before[start]
    return start, end


def run_range_test(
    config: TrainConfig,
    splits: DatasetSplits,
    *,
    device: torch.device,
    lowest: float,
    highest: float,
    steps: int,
    on_step: Callable[[int, float, float], None],
) -> RangeTest:
    """Trains on the real loop, in the real precision, while every learning rate rises by the same factor each step.

    Args:
        config: the job whose rate is looked for; its schedule is not used.
        splits: the data.
        device: where to train.
        lowest: `optimizer.lr` of the first step.
        highest: of the last.
        steps: of training, at least 20; the test ends before where the loss diverges.
        on_step: called after each step with its number from 1, the rate, and the mean loss of the last steps.

    Raises:
        ConfigError: if the range is empty, or the loss was not finite from the start.
    """
    if not 0 < lowest < highest or steps < _LEAST_STEPS:
        raise ConfigError(f"the range test needs 0 < lowest < highest and at least {_LEAST_STEPS} steps")
    trainer = Trainer(config, splits, device, Shard(), load_parent(config))
    trainer.parallel.train()
    rates = np.geomspace(lowest, highest, steps)
    batches = (step for epoch in range(steps) for step in trainer.loader.epoch(epoch))
    losses: list[float] = []
    average, lowest_mean, diverged = 0.0, math.inf, False
    for number, (rate, batch) in enumerate(zip(rates, batches, strict=False), start=1):
        set_learning_rate(trainer.optimizers, rate / config.optimizer.lr)
        loss = float(trainer.train_step(batch)[0]) / batch.global_size
        average = _RECENT * average + (1 - _RECENT) * loss
        mean = average / (1 - _RECENT**number)
        if not math.isfinite(loss) and number < _LEAST_STEPS:
            raise ConfigError(f"the loss became {loss} at a rate of {rate:.2g}, before anything was seen; pass a lower --lowest")
        diverged = not mean <= _DIVERGED * lowest_mean
        if diverged and number >= _LEAST_STEPS:
            break
        lowest_mean = min(lowest_mean, mean)
        losses.append(loss)
        on_step(number, float(rate), mean)
    return RangeTest(rates[: len(losses)], np.array(losses), diverged)


def learning_rate_flags(config: TrainConfig, rate: float) -> str:
    """The flags that set `optimizer.lr` to `rate`; muon's other rates change in proportion, as they did in the test."""
    names = ("lr", "head_lr", "bias_lr") if config.optimizer.name == "muon" else ("lr",)
    factor = rate / config.optimizer.lr
    return " ".join(f"--optimizer.{name.replace('_', '-')} {factor * getattr(config.optimizer, name):.2g}" for name in names)

"""The learning-rate range test: training loss while the learning rate rises from far too low to far too high."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.config import TrainConfig
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError
from cifar_ray.training.loop.optimizers import set_learning_rate
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.weights.initial_network import load_parent

_DIVERGED_FACTOR = 3.0  # the loss has diverged at this multiple of its lowest running mean
_DECAY = 0.9  # decay of the running mean
_SMOOTHING_SHARE = 0.03  # standard deviation of the smoothing kernel, as a share of all steps
_MIN_STEPS = 20

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RangeTest:
    """Result of a range test.

    Attributes:
        rates: float64 `[N]`, `optimizer.lr` of each step, rising by a constant factor; other learning rates rise in proportion.
        losses: float64 `[N]`, training loss of each step, nats per image.
        diverged: whether the loss diverged, which ended the test early.
    """

    rates: Curve
    losses: Curve
    diverged: bool

    @cached_property
    def smoothed(self) -> Curve:
        """The losses, float64 `[N]`, smoothed with a symmetric kernel, which does not shift the curve to higher rates."""
        sigma = _SMOOTHING_SHARE * len(self.losses)
        offsets = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
        weights = np.exp(-0.5 * (offsets / sigma) ** 2)
        return np.convolve(np.pad(self.losses, len(offsets) // 2, mode="edge"), weights / weights.sum(), mode="valid")

    @property
    def edge(self) -> float:
        """The learning rate with the lowest loss: the upper bound of Smith (2017, arXiv 1506.01186, section 3.3).

        This rate suits as a peak learning rate, which the schedule reaches only for a short time.
        """
        return float(self.rates[self.smoothed.argmin()])

    @property
    def steepest(self) -> float:
        """The learning rate at which the loss falls fastest per decade (fast.ai's `steep`)."""
        first = int(2 * _SMOOTHING_SHARE * len(self.losses))  # before this step, the kernel reaches beyond the first step
        falling = slice(first, max(first + 3, int(self.smoothed.argmin()) + 1))
        return float(self.rates[falling][np.gradient(self.smoothed[falling], np.log(self.rates[falling])).argmin()])

    @property
    def valley(self) -> float:
        """The middle of the longest fall, which is robust to noise (fast.ai's `valley`)."""
        start, end = longest_fall(self.smoothed)
        return float(self.rates[(start + end) // 2])


def longest_fall(losses: Sequence[float] | Curve) -> tuple[int, int]:
    """First and last index of the longest strictly decreasing subsequence."""
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
    """Train with the real training step and precision, while every learning rate rises by the same factor in each step.

    Args:
        config: settings of training; the learning-rate schedule is not used.
        splits: the data.
        device: device to train on.
        lowest: `optimizer.lr` of the first step.
        highest: `optimizer.lr` of the last step.
        steps: number of steps, at least 20; the test ends early if the loss diverges.
        on_step: called after each step with its number from 1, the learning rate, and the running mean of the loss.

    Raises:
        ConfigError: if the range is empty, there are fewer than 20 steps, or the loss is not finite in the first steps.
    """
    if not 0 < lowest < highest or steps < _MIN_STEPS:
        got = f"got {lowest:g}, {highest:g} and {steps} steps"
        raise ConfigError(f"the range test needs 0 < lowest < highest and at least {_MIN_STEPS} steps ({got})")
    trainer = Trainer(config, splits, device, Shard(), load_parent(config))
    trainer.parallel.train()
    rates = np.geomspace(lowest, highest, steps)
    batches = (step for epoch in range(steps) for step in trainer.loader.epoch(epoch))
    losses: list[float] = []
    average, lowest_mean, diverged = 0.0, math.inf, False
    for number, (rate, batch) in enumerate(zip(rates, batches, strict=False), start=1):
        set_learning_rate(trainer.optimizers, rate / config.optimizer.lr)
        loss = float(trainer.train_step(batch)[0]) / batch.global_size
        average = _DECAY * average + (1 - _DECAY) * loss
        mean = average / (1 - _DECAY**number)
        if not math.isfinite(loss) and number < _MIN_STEPS:
            raise ConfigError(f"the loss is {loss} at learning rate {rate:.2g}, in step {number}; pass a lower --lowest")
        diverged = not mean <= _DIVERGED_FACTOR * lowest_mean
        if diverged and number >= _MIN_STEPS:
            break
        lowest_mean = min(lowest_mean, mean)
        losses.append(loss)
        on_step(number, float(rate), mean)
    return RangeTest(rates[: len(losses)], np.array(losses), diverged)


def learning_rate_flags(config: TrainConfig, rate: float) -> str:
    """The flags that set `optimizer.lr` to `rate`; the other learning rates of muon change in proportion, as in the range test."""
    names = ("lr", "head_lr", "bias_lr") if config.optimizer.name == "muon" else ("lr",)
    factor = rate / config.optimizer.lr
    return " ".join(f"--optimizer.{name.replace('_', '-')} {factor * getattr(config.optimizer, name):.2g}" for name in names)

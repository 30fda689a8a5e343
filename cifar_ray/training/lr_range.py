"""The learning-rate range test: how the loss behaves while the rate rises from far too low to far too high."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.config import TrainConfig
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.data.loader import Shard
from cifar_ray.errors import ConfigError
from cifar_ray.training.loop import Trainer
from cifar_ray.training.optim import set_learning_rate
from cifar_ray.training.start import load_parent

_DIVERGED = 3.0  # times the lowest smoothed loss, counted from what a fair guess would have
_SMOOTHING = 0.9
_LEAST_STEPS = 20

Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RangeTest:
    """What a range test measured.

    Attributes:
        rates: float64 `[N]`, ascending: `optimizer.lr` of each step; other rates rise in the same proportion.
        losses: float64 `[N]`, training loss of each step, nats an image.
        smoothed: float64 `[N]`, their exponential average.
        diverged: whether the loss rose so far that the test ended early.
    """

    rates: Curve
    losses: Curve
    smoothed: Curve
    diverged: bool

    @property
    def steepest(self) -> float:
        """The rate at which the loss falls fastest a decade (Smith 2017, arXiv 1506.01186, section 3.3, as fast.ai reads it)."""
        return float(self.rates[np.gradient(self.smoothed[: self._lowest], np.log(self.rates[: self._lowest])).argmin()])

    @property
    def valley(self) -> float:
        """The middle of the longest fall, which noise disturbs least (fast.ai's `valley`)."""
        start, end = longest_fall(self.smoothed)
        return float(self.rates[(start + end) // 2])

    @property
    def _lowest(self) -> int:
        return max(3, int(self.smoothed.argmin()) + 1)


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
        on_step: called after each step with its number from 1, the rate, and the smoothed loss.

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
    smoothed: list[float] = []
    average, diverged = 0.0, False
    for number, (rate, batch) in enumerate(zip(rates, batches, strict=False), start=1):
        set_learning_rate(trainer.optimizers, rate / config.optimizer.lr)
        loss = float(trainer.train_step(batch)[0]) / batch.global_size
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        current = average / (1 - _SMOOTHING**number)
        diverged = not math.isfinite(loss) or (number >= _LEAST_STEPS and current > _DIVERGED * min(smoothed))
        if diverged and len(losses) >= _LEAST_STEPS:
            break
        if not math.isfinite(loss):
            raise ConfigError(f"the loss became {loss} at a rate of {rate:.2g}, before anything was seen; pass a lower --lowest")
        losses.append(loss)
        smoothed.append(current)
        on_step(number, float(rate), current)
    return RangeTest(rates[: len(losses)], np.array(losses), np.array(smoothed), diverged)


def to_png(test: RangeTest, title: str, configured: float) -> bytes:
    """Loss over rate, with the suggestions and the rate in the config."""
    from matplotlib.figure import Figure  # takes half a second, and only this needs it

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="0.75", linewidth=1, label="loss of each step")
    axes.plot(test.rates, test.smoothed, color="C0", label="smoothed")
    for rate, name, colour in ((test.valley, "valley", "C2"), (test.steepest, "steepest", "C1"), (configured, "in the config", "0.4")):
        axes.axvline(rate, color=colour, linestyle="--" if name != "in the config" else ":", label=f"{name}: {rate:.2g}")
    low, high = min(test.smoothed.min(), test.losses.min()), float(np.quantile(test.smoothed, 0.97))
    axes.set(xscale="log", xlabel="learning rate (optimizer.lr)", ylabel="training loss (nats)", title=title)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.35 * (high - low))
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()

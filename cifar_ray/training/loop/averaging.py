"""Running averages of weights: EMA, and lookahead, which also continues training from its average."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cifar_ray.cluster.private import copy_each, lerp_each
from cifar_ray.config import AveragingConfig


class WeightAverage:
    """Running average of a network's weights and batch-norm statistics over its training steps.

    EMA: `average ← decay · average + (1 - decay) · weights`, with a decay that starts low, so that the random initial weights do not
    slow down the first epochs (as in TensorFlow's `ExponentialMovingAverage`). Lookahead (Zhang et al. 2019, arXiv 1907.08610,
    algorithm 1) does the same with a constant decay and then `weights ← average`; optimizers keep their momentum.

    Args:
        model: the network on its device, before its first step.
        config: kind of average, not `none`.

    Attributes:
        network: the averaged network, which is evaluated and saved.
    """

    def __init__(self, model: nn.Module, config: AveragingConfig) -> None:
        self._config = config
        self._averaged = AveragedModel(model, use_buffers=True)
        self._averaged.update_parameters(model)  # the first call copies the weights
        self._steps = 0

    @property
    def network(self) -> nn.Module:
        """The averaged network, which is evaluated and saved."""
        network: nn.Module = self._averaged.module
        return network

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Update the average with the present weights, every `every_steps` steps."""
        self._steps += 1
        if self._steps % self._config.every_steps:
            return
        self._blend(model)
        if self._config.name == "lookahead":
            for ours, theirs in zip(self.network.state_dict().values(), model.state_dict().values(), strict=True):
                theirs.copy_(ours)

    def state_dict(self) -> dict[str, Any]:
        """State for resuming; it shares the tensors."""
        return {"steps": self._steps, "averaged": self._averaged.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self._steps = state["steps"]
        self._averaged.load_state_dict(state["averaged"])

    def _blend(self, model: nn.Module) -> None:
        """Update like `AveragedModel.update_parameters`, which would copy its counter to the GPU in each step, and wait for the copy."""
        ours, theirs = ([*one.parameters(), *one.buffers()] for one in (self.network, model))
        pairs = list(zip(ours, theirs, strict=True))
        decay, updates = self._config.decay, int(self._averaged.n_averaged)  # on the CPU
        if self._config.name == "ema":
            decay = min(decay, (1 + updates) / (10 + updates))
        for is_weight, blend in ((True, partial(lerp_each, weight=1 - decay)), (False, copy_each)):  # integers: batch counters of norms
            some = [pair for pair in pairs if pair[0].is_floating_point() == is_weight]
            if some:
                blend(*zip(*some, strict=True))
        self._averaged.n_averaged += 1

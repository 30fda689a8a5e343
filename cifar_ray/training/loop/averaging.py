"""Running averages of weights: EMA, and lookahead, which also continues training from its average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cifar_ray.cluster.private import copy_each, lerp_each
from cifar_ray.config import AveragingConfig

Tensors = tuple[Tensor, ...] | list[Tensor]


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
        self._averaged = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)
        self._averaged.update_parameters(model)  # the first call copies
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
        self._averaged.update_parameters(model)
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

    def _blend(self, averages: Tensors, present: Tensors, _count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # the batch counters of the norms
            copy_each(averages, present)
            return
        decay, updates = self._config.decay, int(self._averaged.n_averaged)  # on the CPU, which needs no GPU synchronisation
        if self._config.name == "ema":
            decay = min(decay, (1 + updates) / (10 + updates))
        lerp_each(averages, present, 1 - decay)

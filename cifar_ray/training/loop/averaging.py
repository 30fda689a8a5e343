"""Running averages of weights: EMA, and lookahead, which also goes on from its average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cifar_ray.cluster.private import copy_each, lerp_each
from cifar_ray.config import AveragingConfig

Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """An average of a network over the steps of its training, batch-norm statistics included.

    EMA: `average ← decay · average + (1 - decay) · weights`, with a decay that begins low, so that the first epochs are not held back by
    the random start (as TensorFlow's `ExponentialMovingAverage`). Lookahead (Zhang et al. 2019, arXiv 1907.08610, algorithm 1) does the
    same at a constant decay and then `weights ← average`; optimizers keep their momentum.

    Args:
        model: on its device, before its first step.
        config: which average; `none` is no choice here.

    Attributes:
        network: the averaged network, which is evaluated and kept.
    """

    def __init__(self, model: nn.Module, config: AveragingConfig) -> None:
        self._config = config
        self._averaged = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)
        self._averaged.update_parameters(model)  # the first call copies
        self._steps = 0

    @property
    def network(self) -> nn.Module:
        """The averaged network, which is evaluated and kept."""
        network: nn.Module = self._averaged.module
        return network

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Takes the present weights into the average, every so many steps."""
        self._steps += 1
        if self._steps % self._config.every_steps:
            return
        self._averaged.update_parameters(model)
        if self._config.name == "lookahead":
            for ours, theirs in zip(self.network.state_dict().values(), model.state_dict().values(), strict=True):
                theirs.copy_(ours)

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on; tensors are shared."""
        return {"steps": self._steps, "averaged": self._averaged.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._steps = state["steps"]
        self._averaged.load_state_dict(state["averaged"])

    def _blend(self, averages: Tensors, present: Tensors, _count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # the batches that norms counted
            copy_each(averages, present)
            return
        decay, updates = self._config.decay, int(self._averaged.n_averaged)  # on the CPU, so a GPU need not be waited for
        if self._config.name == "ema":
            decay = min(decay, (1 + updates) / (10 + updates))
        lerp_each(averages, present, 1 - decay)

"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifar_ray.config import OptimizerConfig, ScheduleConfig


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each filter bank is made orthogonal (Jordan 2024, "Muon: An optimizer for hidden layers").

    A filter bank `[out, in, h, w]` is seen as a matrix `[out, in·h·w]`. Its weights are kept at norm √out, so the
    learning rate alone sets the relative change of a step.

    Args:
        params: convolution filters, at least two-dimensional.
        lr: size of an update whose singular values are about 1.
        momentum: of the running gradient.
        nesterov: look one step ahead.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every filter bank that has a gradient."""
        del closure
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                state = self.state[weights]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weights)
                average = state["momentum_buffer"].mul_(group["momentum"]).add_(weights.grad)
                direction = weights.grad.add(average, alpha=group["momentum"]) if group["nesterov"] else average
                weights.mul_(len(weights) ** 0.5 / weights.norm())
                update = orthogonalize(direction.flatten(1)).view(weights.shape)
                weights.add_(update.to(weights.dtype), alpha=-group["lr"])


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Moves all singular values towards 1 by a quintic Newton–Schulz iteration; the coefficients favour speed over precision.

    Args:
        matrix: `[rows, columns]`.
        steps: iterations; after 3 singular values lie roughly in 0.5…1.5, unless they began below a few per cent of the norm.

    Returns:
        bfloat16, same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def create_optimizers(model: nn.Module, config: OptimizerConfig, batch_size: int) -> list[torch.optim.Optimizer]:
    """One optimizer for all trained weights, or two for `muon`.

    Args:
        model: on its device.
        config: rates and momenta.
        batch_size: global batch; with `muon`, SGD rates of head, norms and biases are proportional to it
            (linear scaling rule, Goyal et al. 2017, arXiv 1706.02677).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "adamw":
        return [torch.optim.AdamW(trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)]
    if config.name == "sgd":
        return [_sgd(trained, config.lr, config.momentum, config.nesterov, config.weight_decay)]
    filters = [p for p in trained if p.ndim == 4]
    matrices = [p for p in trained if 1 < p.ndim < 4]
    vectors = [p for p in trained if p.ndim == 1]
    groups = []
    for params, rate in ((matrices, config.head_lr), (vectors, config.bias_lr)):
        lr = rate * batch_size
        groups.append({"params": params, "lr": lr, "weight_decay": config.sgd_decay * batch_size / lr})
    sgd = _sgd(groups, config.head_lr * batch_size, config.sgd_momentum, nesterov=config.sgd_momentum > 0, weight_decay=0.0)
    return [sgd, Muon(filters, config.lr, config.momentum, config.nesterov)] if filters else [sgd]


def _sgd(params: Any, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def scale_rates(optimizers: Iterable[torch.optim.Optimizer], factors: Mapping[nn.Parameter, float]) -> None:
    """Gives weights of the same optimizer different rates, before its first step.

    Args:
        optimizers: changed in place; within each, groups with the highest rate come first.
        factors: of every trained weight's present rate.
    """
    for optimizer in optimizers:
        scaled: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            for factor in sorted({factors[parameter] for parameter in group["params"]}, reverse=True):
                params = [parameter for parameter in group["params"] if factors[parameter] == factor]
                scaled.append(group | {"params": params, "lr": factor * group["lr"]})
        optimizer.param_groups[:] = scaled


def learning_rate_factor(config: ScheduleConfig, epoch: float, epochs: float) -> float:
    """The learning rate as a share of its peak.

    Args:
        config: which curve.
        epoch: epochs done, with fraction.
        epochs: epochs in all.

    Returns:
        0…1.
    """
    warmup = config.warmup_epochs or (0.3 * epochs if config.name == "one_cycle" else 0.0)
    if epoch < warmup:
        rising = epoch / warmup
        return (1 - math.cos(math.pi * rising)) / 2 if config.name == "one_cycle" else rising
    done = min(1.0, (epoch - warmup) / (epochs - warmup))
    final = config.final_factor
    if config.name == "linear":
        return 1 - (1 - final) * done
    if config.name in ("cosine", "one_cycle"):
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    if config.name == "step":
        return config.step_factor ** int(epoch / config.step_epochs)
    return 1.0


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Sets each group's rate to `factor` times the rate it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifar_ray.config import OptimizerConfig, ScheduleConfig
from cifar_ray.models.stages import stages


class Muon(torch.optim.Optimizer):
    """Muon: momentum with orthogonalised updates of each filter bank (Jordan 2024, "Muon: An optimizer for hidden layers").

    It treats a filter bank `[out, in, h, w]` as a matrix `[out, in·h·w]` and keeps its norm at √out, so that only the
    learning rate sets the relative change of a step.

    Args:
        params: convolution filters, at least two-dimensional.
        lr: size of an update with singular values of about 1.
        momentum: momentum of the running gradient.
        nesterov: use Nesterov momentum.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every filter bank that has a gradient."""
        del closure
        for group in self.param_groups:
            directions: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weights in group["params"]:
                if weights.grad is not None:
                    direction = self._direction(weights, weights.grad, group)
                    directions.setdefault(weights.shape, []).append((weights, direction))
            for shape, banks in directions.items():  # all of one shape at once: a GPU would wait for each small product
                updates = orthogonalize(torch.stack([direction.flatten(1) for _, direction in banks]))
                for (weights, _), update in zip(banks, updates, strict=True):
                    weights.mul_(len(weights) ** 0.5 / weights.norm())
                    weights.add_(update.view(shape).to(weights.dtype), alpha=-group["lr"])

    def _direction(self, weights: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[weights]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weights)
        average: Tensor = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        return gradient.add(average, alpha=group["momentum"]) if group["nesterov"] else average


def orthogonalize(matrices: Tensor, steps: int = 3) -> Tensor:
    """Move all singular values towards 1 with a quintic Newton–Schulz iteration, whose coefficients favour speed over precision.

    Args:
        matrices: `[…, rows, columns]`.
        steps: iterations; after 3, singular values are roughly in 0.5–1.5, unless they started below a few per cent of the norm.

    Returns:
        bfloat16, same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class DecoupledSGD(torch.optim.SGD):
    """SGD with decoupled weight decay (SGDW: Loshchilov & Hutter 2019, arXiv 1711.05101).

    The decay per step is `decay` of the group times its learning rate, as in AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply the weight decay to weights with a gradient, then update them."""
        del closure
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    weights.mul_(1 - group["lr"] * group["decay"])
        super().step()


def peak_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Peak learning rate for a global batch of `batch_size` images.

    Linear: Goyal et al. 2017, arXiv 1706.02677, section 2.1. Square root, for optimizers that normalise their updates: Malladi et al. 2022,
    arXiv 2205.10287.
    """
    ratio = batch_size / config.reference_batch_size
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]


def create_optimizers(model: nn.Module, config: OptimizerConfig, batch_size: int) -> list[torch.optim.Optimizer]:
    """Create one optimizer for all trained weights, or two for `muon`.

    Args:
        model: the network on its device.
        config: learning rates and momenta.
        batch_size: global batch size; with `muon`, the SGD rates of head, norms and biases are proportional to it
            (linear scaling rule, Goyal et al. 2017, arXiv 1706.02677).
    """
    lr = peak_learning_rate(config, batch_size)
    if config.name == "adamw":
        return [torch.optim.AdamW(_groups(model, config, lr), lr=lr, betas=config.betas, fused=_on_gpu(model))]
    if config.name == "sgd":
        groups = _groups(model, config, lr)
        if not config.decoupled_decay:
            return [_sgd(groups, lr, config.momentum, config.nesterov, fused=_on_gpu(model))]
        groups = [group | {"weight_decay": 0.0, "decay": group["weight_decay"]} for group in groups]
        return [DecoupledSGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    filters = [p for p in trained if p.ndim == 4]
    matrices = [p for p in trained if 1 < p.ndim < 4]
    vectors = [p for p in trained if p.ndim == 1]
    groups = []
    for params, rate in ((matrices, config.head_lr), (vectors, config.bias_lr)):
        rate_of_batch = rate * batch_size
        groups.append({"params": params, "lr": rate_of_batch, "weight_decay": config.sgd_decay * batch_size / rate_of_batch})
    sgd = _sgd(groups, config.head_lr * batch_size, config.sgd_momentum, config.sgd_momentum > 0, fused=_on_gpu(model))
    return [sgd, Muon(filters, lr, config.momentum, config.nesterov)] if filters else [sgd]


def _groups(model: nn.Module, config: OptimizerConfig, lr: float) -> list[dict[str, Any]]:
    """Group trained weights by learning rate and decay: norms and biases, the head, and all others may differ."""
    head = set(stages(model)[-1].parameters())
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        is_vector = parameter.ndim == 1
        factor = config.bias_factor if is_vector else config.head_factor if parameter in head else 1.0
        decay = config.weight_decay if config.decay_biases or not is_vector else 0.0
        found.setdefault((factor, decay), []).append(parameter)
    return [{"params": params, "lr": factor * lr, "weight_decay": decay} for (factor, decay), params in found.items()]


def _sgd(params: Any, lr: float, momentum: float, nesterov: bool, fused: bool) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)


def _on_gpu(model: nn.Module) -> bool:
    """Whether a fused kernel can update all weights; on a CPU, fused SGD would not detect fp16 overflows."""
    return next(model.parameters()).is_cuda


def scale_rates(optimizers: Iterable[torch.optim.Optimizer], factors: Mapping[nn.Parameter, float]) -> None:
    """Scale the learning rates of weights, before the first step.

    Args:
        optimizers: changed in place; within each, groups with the highest rate come first.
        factors: factor for the learning rate of every trained weight.
    """
    for optimizer in optimizers:
        scaled: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            for factor in sorted({factors[parameter] for parameter in group["params"]}, reverse=True):
                params = [parameter for parameter in group["params"] if factors[parameter] == factor]
                scaled.append(group | {"params": params, "lr": factor * group["lr"]})
        optimizer.param_groups[:] = scaled


def learning_rate_factor(config: ScheduleConfig, epoch: float, epochs: float) -> float:
    """Learning rate as a fraction of its peak.

    Args:
        config: the schedule.
        epoch: epochs done, with fraction.
        epochs: total number of epochs.

    Returns:
        0–1.
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
        drops: int = sum(epoch >= milestone for milestone in config.milestones) if config.milestones else int(epoch / config.step_epochs)
        return float(config.step_factor**drops)
    return 1.0


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set the learning rate of each group to `factor` times its initial value."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifar_ray.config import OptimizerConfig, ScheduleConfig
from cifar_ray.models.stages import stages
from cifar_ray.training.steps.muon import Muon


class DecoupledSGD(torch.optim.SGD):
    """SGD with decoupled weight decay (SGDW: Loshchilov & Hutter 2019, arXiv 1711.05101).

    The decay per step is `decay` of the group times its learning rate, as in AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Decay the weights that have a gradient, then update them; after an fp16 overflow, do neither."""
        del closure
        overflow = getattr(self, "found_inf", None)
        for group in self.param_groups:
            decay = group["lr"] * group["decay"] * (1 if overflow is None else 1 - overflow)
            for weights in group["params"]:
                if weights.grad is not None:
                    weights.mul_(1 - decay)
        super().step()


def peak_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Peak learning rate for a global batch of `batch_size` images.

    Linear: Goyal et al. 2017, arXiv 1706.02677, section 2.1. Square root, for optimizers that normalise their updates: Malladi et al. 2022,
    arXiv 2205.10287.
    """
    ratio = batch_size / config.reference_batch_size
    return config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]


def create_optimizers(model: nn.Module, config: OptimizerConfig, batch_size: int, compiles: bool = False) -> list[torch.optim.Optimizer]:
    """Create one optimizer for all trained weights, or two for `muon`.

    Args:
        model: the network on its device.
        config: learning rates and momenta.
        batch_size: global batch size; with `muon`, the SGD rates of head, norms and biases are proportional to it
            (linear scaling rule, Goyal et al. 2017, arXiv 1706.02677).
        compiles: compile the update of `muon`; the learning rates then become tensors.
    """
    lr = peak_learning_rate(config, batch_size)
    if config.name == "adamw":
        return [torch.optim.AdamW(_groups(model, config, lr), lr=lr, betas=config.betas, fused=_on_gpu(model))]
    if config.name == "sgd":
        groups = _groups(model, config, lr)
        if not config.decoupled_decay:
            return [_sgd(groups, lr, config.momentum, config.nesterov, fused=_on_gpu(model))]
        groups = [group | {"weight_decay": 0.0, "decay": group["weight_decay"]} for group in groups]
        decoupled = DecoupledSGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=_on_gpu(model))
        return [_with_momentum(decoupled)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    filters = [p for p in trained if p.ndim == 4]
    matrices = [p for p in trained if 1 < p.ndim < 4]
    vectors = [p for p in trained if p.ndim == 1]
    groups = []
    for params, rate in ((matrices, config.head_lr), (vectors, config.bias_lr)):
        rate_of_batch = rate * batch_size
        groups.append({"params": params, "lr": rate_of_batch, "weight_decay": config.sgd_decay * batch_size / rate_of_batch})
    sgd = _sgd(groups, config.head_lr * batch_size, config.sgd_momentum, config.sgd_momentum > 0, fused=_on_gpu(model))
    return [sgd, Muon(filters, lr, config.momentum, config.nesterov, compiles)] if filters else [sgd]


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
    return _with_momentum(torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused))


def _with_momentum(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    """SGD whose momenta are zero at first: the fused kernel leaves them undefined if fp16 overflows in its first step."""
    for group in optimizer.param_groups:
        for weights in group["params"] if group["momentum"] and group["fused"] else ():
            optimizer.state[weights]["momentum_buffer"] = torch.zeros_like(weights)
    return optimizer


def _on_gpu(model: nn.Module) -> bool:
    """Whether a fused kernel can update all weights; on a CPU, fused SGD would not detect fp16 overflows."""
    return next(model.parameters()).is_cuda


def scale_rates(optimizers: Iterable[torch.optim.Optimizer], factors: Mapping[nn.Parameter, float]) -> None:
    """Scale the learning rates of weights, before the first step.

    Args:
        optimizers: changed in place: each group is split into groups of equal factor, the largest factor first.
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

    `cosine`: Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts. `one_cycle`: Smith & Topin 2017, arXiv 1708.07120, in the
    form of PyTorch's `OneCycleLR`: cosine warm-up for 30 % of the epochs by default, then cosine decay.

    Args:
        config: the schedule.
        epoch: number of finished epochs, may be fractional.
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
            rate = factor * group.setdefault("initial_lr", group["lr"])
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def keep_rates_on(device: torch.device, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Turn the learning rates into tensors on a device: compiled and captured steps read tensors, but treat numbers as constants."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = torch.full((), group["lr"], device=device)
            if "capturable" in group:
                group["capturable"] = True


def state_without_rates(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`state_dict` with numbers, the initial learning rates, in place of tensors; each step sets the learning rate anew."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["initial_lr"]
    return state


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a `state_dict`, but keep the settings that depend on the present device: kernels, and learning rates as tensors."""
    ours = ("fused", "foreach", "capturable")
    kept = [{key: group[key] for key in ours if key in group} for group in optimizer.param_groups]
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, how, rate in zip(optimizer.param_groups, kept, rates, strict=True):
        group.update(how | ({"lr": rate} if isinstance(rate, Tensor) else {}))

"""The Muon optimizer, with few operations per step and without waiting for the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from cifar_ray.cluster.private import handles_overflows


class Muon(torch.optim.Optimizer):
    """Muon: momentum with orthogonalised updates of each filter bank (Jordan 2024, "Muon: An optimizer for hidden layers").

    It treats a filter bank `[out, in, h, w]` as a matrix `[out, in·h·w]` and keeps its norm at √out, so that only the
    learning rate sets the relative change of a step.

    Args:
        params: convolution filters, at least two-dimensional.
        lr: size of an update with singular values of about 1.
        momentum: momentum of the running gradient.
        nesterov: use Nesterov momentum.
        is_compiled: compile the update; the learning rates must then be tensors, see `optimizers.keep_rates_on`.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float, nesterov: bool, is_compiled: bool = False) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov})
        handles_overflows(self)
        self._update = torch.compile(update_filters, dynamic=False) if is_compiled else update_filters

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every filter bank that has a gradient, except after an fp16 overflow, which `GradScaler` reports in `found_inf`."""
        del closure
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [one for one in group["params"] if one.grad is not None]
            momenta = [self._momentum(one) for one in weights]
            if scale is not None:
                for one in weights:
                    one.grad.div_(scale)
            before = [] if overflow is None else [tensor.clone() for tensor in (*weights, *momenta)]
            self._update(weights, [one.grad for one in weights], momenta, group["lr"], group["momentum"], group["nesterov"])
            for tensor, old in zip((*weights, *momenta), before, strict=False):
                tensor.copy_(torch.where(overflow.bool(), old, tensor))  # type: ignore[union-attr]

    def _momentum(self, weights: Tensor) -> Tensor:
        state = self.state[weights]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weights)
        return state["momentum_buffer"]  # type: ignore[no-any-return]


def update_filters(
    weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], lr: float | Tensor, momentum: float, nesterov: bool
) -> None:
    """Update filter banks and their momenta in place; banks of one shape are orthogonalised together.

    Args:
        weights: float32 `[out, in, h, w]` each.
        gradients: as `weights`.
        momenta: as `weights`.
        lr: a number, or a tensor of one element on the device of the weights.
        momentum: momentum of the running gradient.
        nesterov: use Nesterov momentum.
    """
    by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for weight, gradient, average in zip(weights, gradients, momenta, strict=True):
        average.mul_(momentum).add_(gradient)
        direction = gradient.add(average, alpha=momentum) if nesterov else average
        by_shape.setdefault(weight.shape, []).append((weight, direction))
    for shape, banks in by_shape.items():  # one batched product per shape: single small products would leave a GPU idle
        updates = orthogonalize(torch.stack([direction.flatten(1) for _, direction in banks])).float()
        for (weight, _), update in zip(banks, updates.unbind(), strict=True):
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            if isinstance(lr, Tensor):
                weight.addcmul_(update.view(shape), lr, value=-1)
            else:
                weight.add_(update.view(shape), alpha=-lr)


def orthogonalize(matrices: Tensor, steps: int = 3) -> Tensor:
    """Move all singular values towards 1 with a quintic Newton–Schulz iteration, whose coefficients favour speed over precision.

    Args:
        matrices: `[…, rows, columns]`.
        steps: iterations; after 3, singular values are roughly in 0.5–1.5, unless they started below a few per cent of the norm.

    Returns:
        bfloat16, same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrices.reshape(-1, *matrices.shape[-2:]).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)

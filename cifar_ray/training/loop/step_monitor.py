"""What workers agree on between steps: that the loss is a number, and whether to save or to stop."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cifar_ray.errors import TrainingError
from cifar_ray.training.loop.command import Wish


class Stopped(Exception):  # noqa: N818  no error: it was asked for
    """Training ended early, as it was told to, its state having been handed on."""


class NotFiniteError(TrainingError):
    """The loss, or a weight, is no longer a number."""


class StepWatch:
    """Sends what is to be agreed on around with each step, and looks at the answer a step later.

    So a GPU has the next step to compute while this waits for the last one, and a loss that is not finite is found one step late.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: tuple[str, Tensor, Any] | None = None

    def after_step(self, where: str, wish: Wish, loss: Tensor) -> Wish:
        """Sends a step's answer around, and gives that of the step before.

        Args:
            where: the step, for a message.
            wish: of rank 0; those of others do not count.
            loss: float64, of this worker.

        Raises:
            NotFiniteError: on all workers alike, naming the earlier step.
        """
        first = not dist.is_initialized() or dist.get_rank() == 0
        values = torch.stack((torch.full_like(loss, float(wish if first else 0)), loss.detach()))
        work = dist.all_reduce(values, async_op=True) if dist.is_initialized() else None
        earlier = self.settle()
        self._pending = (where, values, work)
        return earlier

    def settle(self) -> Wish:
        """The answer that is still under way, if any.

        Raises:
            NotFiniteError: as `after_step`.
        """
        if self._pending is None:
            return Wish.GO_ON
        (where, values, work), self._pending = self._pending, None
        if work is not None:
            work.wait()
        wish, loss = values.tolist()
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss became {loss} in {where}")
        return Wish(int(wish))

    def agree(self, wish: Wish) -> Wish:
        """What rank 0 wishes now, on all workers; nothing may be under way."""
        self.after_step("", wish, torch.zeros((), dtype=torch.float64, device=self._device))
        return self.settle()

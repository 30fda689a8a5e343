"""What workers agree on between steps: that the loss is finite, and whether to save or to stop."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cifar_ray.errors import TrainingError
from cifar_ray.training.loop.command import Command


class Stopped(Exception):  # noqa: N818  no error: it was asked for
    """Training stopped on command, after its state was saved."""


class NotFiniteError(TrainingError):
    """The loss, or a weight, is no longer a number."""


class StepMonitor:
    """All-reduces the command and the loss with each step, and reads the result one step later.

    So a GPU computes the next step while this waits for the last one, and a loss that is not finite is found one step late.

    Args:
        device: of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: tuple[str, Tensor, Any] | None = None

    def after_step(self, where: str, command: Command, loss: Tensor) -> Command:
        """Starts the all-reduce of a step, and returns the command of the step before.

        Args:
            where: the step, for a message.
            command: of rank 0; those of others do not count.
            loss: float64, of this worker.

        Raises:
            NotFiniteError: on all workers alike, naming the earlier step.
        """
        first = not dist.is_initialized() or dist.get_rank() == 0
        values = torch.stack((torch.full_like(loss, float(command if first else 0)), loss.detach()))
        work = dist.all_reduce(values, async_op=True) if dist.is_initialized() else None
        earlier = self.settle()
        self._pending = (where, values, work)
        return earlier

    def settle(self) -> Command:
        """Returns the command that is still being reduced, if any.

        Raises:
            NotFiniteError: as `after_step`.
        """
        if self._pending is None:
            return Command.CONTINUE
        (where, values, work), self._pending = self._pending, None
        if work is not None:
            work.wait()
        command, loss = values.tolist()
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss became {loss} in {where}")
        return Command(int(command))

    def agree(self, command: Command) -> Command:
        """Returns the command of rank 0, on all workers; no all-reduce may be in progress."""
        self.after_step("", command, torch.zeros((), dtype=torch.float64, device=self._device))
        return self.settle()

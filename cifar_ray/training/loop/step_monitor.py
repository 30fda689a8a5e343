"""Agreement of all workers between steps: a finite loss, and save and stop commands."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from cifar_ray.errors import TrainingError
from cifar_ray.training.loop.command import Command
from cifar_ray.training.steps.readback import Readback


class Stopped(Exception):  # noqa: N818  not an error: the user requested it
    """Training stopped on command, after its state was saved."""


class NotFiniteError(TrainingError):
    """The loss or a weight is not finite."""


class StepMonitor:
    """All-reduces the command and the loss with each step, and reads the result one step later.

    The GPU computes the next step during the wait. A non-finite loss is therefore detected one step late.

    Args:
        device: device of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: tuple[str, Readback] | None = None

    def after_step(self, where: str, command: Command, loss: Tensor) -> Command:
        """Start the all-reduce of a step, and return the command of the previous step.

        Args:
            where: the step, for messages.
            command: command of rank 0; the commands of other workers do not count.
            loss: loss of this worker, float64.

        Raises:
            NotFiniteError: on all workers, if the previous step's loss is not finite on at least one of them.
        """
        first = not dist.is_initialized() or dist.get_rank() == 0
        values = torch.stack((torch.full_like(loss, float(command if first else 0)), loss.detach()))
        work = dist.all_reduce(values, async_op=True) if dist.is_initialized() else None
        reading = Readback(values, work)
        earlier = self.settle()
        self._pending = (where, reading)
        return earlier

    def settle(self) -> Command:
        """Wait for a pending all-reduce and return its command.

        Raises:
            NotFiniteError: as `after_step`.
        """
        if self._pending is None:
            return Command.CONTINUE
        (where, reading), self._pending = self._pending, None
        command, loss = reading.read()
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss} in {where}")
        return Command(int(command))

    def agree(self, command: Command) -> Command:
        """Return the command of rank 0 on all workers; no all-reduce may be pending."""
        self.after_step("", command, torch.zeros((), dtype=torch.float64, device=self._device))
        return self.settle()

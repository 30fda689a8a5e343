"""Snapshot of the training state between two steps; another process resumes from it with the same result.

Order, augmentation and dropout depend only on (seed, epoch, step, rank), so a snapshot contains no generator state.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from cifar_ray.training.loop.collective import gather_over_workers
from cifar_ray.training.loop.optimizers import load_state, state_without_rates
from cifar_ray.training.steps.readback import copy_to_host

if TYPE_CHECKING:
    from cifar_ray.training.loop.trainer import Trainer
    from cifar_ray.training.records.checkpoint import Checkpoints
    from cifar_ray.training.records.results import Weights


@dataclass(frozen=True)
class Snapshot:
    """Training state after a step.

    Attributes:
        epoch: number of finished epochs.
        step: number of finished steps in the next epoch.
        history: `EpochReport.figures` of each finished epoch.
        best_epoch: best epoch, from 1; 0 before the end of the first epoch.
        seconds: duration of the training and of the present epoch.
        rewinds: number of rewinds.
        state: weights, their average, optimizers and scaler; the best weights as `kept`; within an epoch, the state that differs
            between workers as `workers`.
    """

    epoch: int
    step: int
    history: list[dict[str, Any]]
    best_epoch: int
    seconds: tuple[float, float]
    rewinds: int
    state: dict[str, Any]

    @property
    def last(self) -> dict[str, Any]:
        """The report of the last finished epoch."""
        return self.history[-1]

    def restore(self, trainer: Trainer) -> None:
        """Restore this state in a new trainer of the same config."""
        trainer.model.load_state_dict(self.state["model"])
        for optimizer, state in zip(trainer.optimizers, self.state["optimizers"], strict=True):
            load_state(optimizer, state)
        trainer.scaler.load_state_dict(self.state["scaler"])
        if trainer.average is not None:
            trainer.average.load_state_dict(self.state["average"])
        if self.step:
            _restore_worker(trainer, **self.state["workers"])

    def detach(self) -> Callable[[], bytes]:
        """Copy this state, so that further steps do not change it; a GPU continues meanwhile.

        Returns:
            A function that returns `to_bytes` of the state at the time of this call; any thread may call it.
        """
        state, copied = copy_to_host(self.state)
        if copied is None:
            data = self.to_bytes()
            return lambda: data
        detached = replace(self, state=state)

        def serialize() -> bytes:
            copied.synchronize()
            return detached.to_bytes()

        return serialize

    def to_bytes(self) -> bytes:
        """Serialize to bytes."""
        file = io.BytesIO()
        torch.save(vars(self), file)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, device: torch.device) -> Self:
        """Deserialize from `to_bytes`, without executing code.

        Raises:
            RuntimeError, pickle.UnpicklingError, EOFError: if the data are damaged.
        """
        return cls(**torch.load(io.BytesIO(data), map_location=device, weights_only=True))


def best_weights(checkpoints: Checkpoints, epoch: int) -> Weights | None:
    """The weights of the best epoch, on the CPU, from the last checkpoint; `None` if it is missing or has another best epoch."""
    newest = checkpoints.newest()
    if newest is None:
        return None
    snapshot = Snapshot.from_bytes(newest[1], torch.device("cpu"))
    weights: Weights = snapshot.state["kept"]
    return weights if snapshot.best_epoch == epoch else None


def state_of(trainer: Trainer, kept: dict[str, Tensor], within_epoch: bool) -> dict[str, Any]:
    """`Snapshot.state` of a trainer, called on all workers. It shares the trainer's tensors, so serialize it before training continues."""
    workers = {
        "sums": gather_over_workers(trainer.sums),
        "images_seen": trainer.images_seen,
        "buffers": gather_over_workers(_statistics(trainer)),
    }
    return {
        "model": trainer.model.state_dict(),
        "optimizers": [state_without_rates(optimizer) for optimizer in trainer.optimizers],
        "scaler": trainer.scaler.state_dict(),
        "average": trainer.average.state_dict() if trainer.average else None,
        "kept": kept,
        "workers": workers if within_epoch else None,
    }


def _buffers(trainer: Trainer) -> list[Tensor]:
    """Batch-norm statistics, which each worker computes on its own images until the end of the epoch."""
    networks = [trainer.model] if trainer.average is None else [trainer.model, trainer.average.network]
    return [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()]


def _statistics(trainer: Trainer) -> Tensor:
    parts = [buffer.flatten().float() for buffer in _buffers(trainer)]
    return torch.cat(parts) if parts else torch.zeros(0, device=trainer.device)


def _restore_worker(trainer: Trainer, sums: Tensor, images_seen: int, buffers: Tensor) -> None:
    """Restore this worker's sums and batch-norm statistics.

    If the number of workers has changed, every worker gets the mean statistics, and rank 0 gets the sums of all workers.
    """
    rank, same = trainer.shard.rank, len(sums) == trainer.shard.world_size
    if same:
        trainer.sums = sums[rank].clone()
    else:
        trainer.sums = sums.sum(0) if rank == 0 else torch.zeros_like(trainer.sums)
    trainer.images_seen = images_seen
    places = _buffers(trainer)
    parts = torch.split(buffers[rank] if same else buffers.mean(0), [place.numel() for place in places])
    for place, part in zip(places, parts, strict=True):
        place.copy_(part.view_as(place))

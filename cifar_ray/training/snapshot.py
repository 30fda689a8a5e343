"""The whole state of a training between two epochs, so that it can go on in another process as if it had never stopped.

Order and augmentation follow from (seed, epoch, step), and dropout from (seed, epoch, rank), so no generator needs to be kept.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from cifar_ray.training.loop import Trainer


@dataclass(frozen=True)
class Snapshot:
    """State after an epoch.

    Attributes:
        last: the report of that epoch, as a mapping.
        best: the report of the best epoch so far.
        state: weights and their average, optimizers and scaler, and under `kept` the best weights.
    """

    last: dict[str, Any]
    best: dict[str, Any]
    state: dict[str, Any]

    @classmethod
    def of(cls, trainer: Trainer, last: dict[str, Any], best: dict[str, Any], kept: dict[str, torch.Tensor]) -> Self:
        """Takes the state of a trainer; tensors are shared with it, so write it out before training goes on."""
        state = {
            "model": trainer.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "scaler": trainer.scaler.state_dict(),
            "average": trainer.average.state_dict() if trainer.average else None,
            "kept": kept,
        }
        return cls(last, best, state)

    def restore(self, trainer: Trainer) -> None:
        """Puts a trainer of the same config into this state."""
        trainer.model.load_state_dict(self.state["model"])
        for optimizer, state in zip(trainer.optimizers, self.state["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        trainer.scaler.load_state_dict(self.state["scaler"])
        if trainer.average is not None:
            trainer.average.load_state_dict(self.state["average"])

    def to_bytes(self) -> bytes:
        """For a file."""
        file = io.BytesIO()
        torch.save({"last": self.last, "best": self.best, "state": self.state}, file)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, device: torch.device) -> Self:
        """Reads what `to_bytes` gave; executes nothing in it.

        Raises:
            RuntimeError, pickle.UnpicklingError, EOFError: if the data are damaged.
        """
        return cls(**torch.load(io.BytesIO(data), map_location=device, weights_only=True))

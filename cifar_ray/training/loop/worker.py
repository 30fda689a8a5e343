"""The run of one worker: resume and train; rank 0 also writes checkpoints and reports to the driver. Uses no Ray."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from cifar_ray.config import TrainConfig
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import CifarRayError, TrainingError, describe_out_of_memory, is_out_of_memory
from cifar_ray.training.loop.command import CheckpointSchedule, Command
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.loop.step_monitor import Stopped
from cifar_ray.training.records.checkpoint import BackgroundWriter, CheckpointPosition, Checkpoints
from cifar_ray.training.records.results import EpochReport, FitResult, Weights
from cifar_ray.training.steps.micro_batches import memory_advice
from cifar_ray.training.weights.initial_network import load_parent

_STEP_INTERVAL_S = 0.5  # minimum time between two step events

# Errors of code and settings: a retry would fail in the same way. After a CUDA assertion, the device refuses all further work.
_PERMANENT = (ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError, NotImplementedError, ArithmeticError)
_DEAD_DEVICE = "device-side assert"


class ToDriver(Protocol):
    """Rank 0's end of the channel to the driver."""

    def send(self, kind: str, content: Any) -> None:
        """Send an event without waiting."""

    def send_and_wait(self, kind: str, content: Any) -> None:
        """Send an event and wait until it has arrived, because this process may end soon."""

    def confirm_saved(self, number: int) -> None:
        """Report that a checkpoint is written, which fulfils save request `number` and all earlier ones."""

    def on_command(self, handle: Callable[[Command, int], None]) -> None:
        """Pass each command, with the number of the newest save request, to `handle`."""


def run_worker(
    config: TrainConfig,
    splits: TrainingSplits,
    channel: ToDriver,
    device: torch.device,
    shard: Shard,
    broadcast: Callable[[CheckpointPosition | None], CheckpointPosition | None],
) -> FitResult | None:
    """Train from the newest checkpoint, if there is one; returns `None` after a stop command.

    Args:
        config: config of the run; its `name` is set.
        splits: the data set.
        channel: channel to the driver; only rank 0 uses it.
        device: device of this worker.
        shard: this worker's part.
        broadcast: passes rank 0's value to all workers.

    Raises:
        TrainingError: in place of an error that a retry would only repeat.
    """
    assert config.name is not None  # noqa: S101
    rank_zero = _RankZero(config, channel) if shard.rank == 0 else None
    checkpoints = rank_zero.checkpoints if rank_zero else Checkpoints(config.storage, config.name)
    place = broadcast(rank_zero.begin(shard) if rank_zero else None)
    resume = _read(checkpoints, place, device) if place else None
    with BackgroundWriter(checkpoints) as writer:
        listeners = rank_zero.listeners(writer, resume, shard) if rank_zero else _NO_LISTENERS
        try:
            return fit(config, splits, device=device, shard=shard, parent=load_parent(config), resume=resume, **listeners)
        except Stopped:
            return None
        except CifarRayError:
            raise
        except Exception as error:
            advice = memory_advice(config, device, splits.train.image_size_px, shard.world_size)
            if (permanent := _as_permanent(error, advice)) is not None:
                raise permanent from error
            raise


def _as_permanent(error: Exception, advice: str) -> TrainingError | None:
    """The error that ends the run if a retry would fail in the same way; `None` for a transient error.

    `advice` tells the user what to do if memory ran out.
    """
    if is_out_of_memory(error):
        return TrainingError(describe_out_of_memory(error, advice))
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return TrainingError(f"training failed: {reason}") if isinstance(error, _PERMANENT) or _DEAD_DEVICE in str(error) else None


_NO_LISTENERS: dict[str, Any] = {"on_step": lambda *_: None, "on_epoch": lambda *_: None, "on_snapshot": lambda _: None}


def _read(checkpoints: Checkpoints, place: CheckpointPosition, device: torch.device) -> Snapshot:
    data = checkpoints.read(place)
    if data is None:
        raise TrainingError(f"checkpoint {place.folder} cannot be read on every host; pass a --storage that all hosts share")
    return Snapshot.from_bytes(data, device)


class _RankZero:
    """Additional tasks of rank 0: write checkpoints, and communicate with the driver."""

    def __init__(self, config: TrainConfig, channel: ToDriver) -> None:
        assert config.name is not None  # noqa: S101
        self._channel = channel
        self._attempt = 0
        self._step_sent_s = 0.0
        self._schedule = CheckpointSchedule(config.checkpoint_every)
        channel.on_command(self._schedule.request)
        self.checkpoints = Checkpoints(config.storage, config.name, lambda text: channel.send("message", text))

    def begin(self, shard: Shard) -> CheckpointPosition | None:
        """Claim the number of this attempt, so that earlier attempts stop writing, and return the checkpoint to resume from."""
        about = {"began_at": time.time(), "workers": shard.world_size, "host": platform.node()}
        self._attempt = self.checkpoints.begin_attempt(about)
        newest = self.checkpoints.newest()
        self.checkpoints.sweep()
        return newest[0] if newest else None

    def listeners(self, writer: BackgroundWriter, resume: Snapshot | None, shard: Shard) -> dict[str, Any]:
        """Callbacks for `fit`."""
        start = (resume.epoch, resume.step, resume.history) if resume else (0, 0, [])
        self._channel.send_and_wait("start", (*start, shard.world_size))

        def on_step(epoch: int, done: int, steps: int) -> None:
            if done == steps or time.monotonic() - self._step_sent_s > _STEP_INTERVAL_S:
                self._step_sent_s = time.monotonic()
                self._channel.send("step", (epoch, done, steps))

        def on_epoch(report: EpochReport, weights: Weights) -> None:
            del weights
            self._channel.send_and_wait("epoch", report)

        def on_snapshot(snapshot: Snapshot) -> None:
            place, number = CheckpointPosition(self._attempt, snapshot.epoch, snapshot.step), self._schedule.fulfil()
            figures = snapshot.history[-1] if snapshot.history else {}
            writer.write(place, snapshot.detach(), figures, on_written=lambda: self._channel.confirm_saved(number))

        def on_message(text: str) -> None:
            self._channel.send("message", text)

        return {
            "on_step": on_step,
            "on_epoch": on_epoch,
            "on_snapshot": on_snapshot,
            "next_command": self._schedule,
            "on_message": on_message,
        }

"""What each worker of a run does on Ray Train: data, loop, checkpoints, and from rank 0 messages to the driver."""

from __future__ import annotations

import platform
import time
from typing import Any

from ray import train
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device as get_ray_device

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import StreamedSplits, open_splits
from cifar_ray.data.batches.loader import Shard
from cifar_ray.errors import TrainingError
from cifar_ray.training.loop.command import Wish
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.loop.step_monitor import Stopped
from cifar_ray.training.loop.trainer import Weights
from cifar_ray.training.on_ray.channel import Line
from cifar_ray.training.on_ray.ingest import fed_by_ray
from cifar_ray.training.records.checkpoint import BackgroundWriter, Cadence, Checkpoints, Place
from cifar_ray.training.records.results import EpochReport, FitResult
from cifar_ray.training.weights.initial_network import load_parent

_STEP_INTERVAL_S = 0.5  # between two messages about steps


def train_worker(job: dict[str, Any]) -> FitResult | None:
    """Trains, from the newest checkpoint if there is one; `None` if the driver asked to stop."""
    config = parse_config(TrainConfig, job["config"])
    context = train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    prepare_process(job["threads"])
    job["mark"].check(config.storage, f"runs/{config.name}")
    splits = open_splits(config)
    if isinstance(splits, StreamedSplits):
        splits = fed_by_ray(splits)
    assert config.name is not None  # noqa: S101
    chief = _Chief(config, job["line"]) if shard.rank == 0 else None
    checkpoints = chief.checkpoints if chief else Checkpoints(config.storage, config.name)
    place: Place | None = broadcast_from_rank_zero(chief.begin(shard) if chief else None)
    resume = _read(checkpoints, place) if place else None
    with BackgroundWriter(checkpoints, on_written=job["line"].saved) as writer:
        told = chief.listeners(writer, resume, shard) if chief else _SILENT
        try:
            return fit(config, splits, device=get_ray_device(), shard=shard, parent=load_parent(config), resume=resume, **told)
        except Stopped:
            return None


_SILENT: dict[str, Any] = {"on_step": lambda *_: None, "on_epoch": lambda *_: None, "on_snapshot": lambda _: None}


def _read(checkpoints: Checkpoints, place: Place) -> Snapshot:
    data = checkpoints.read(place)
    if data is None:
        raise TrainingError(f"checkpoint {place.folder} cannot be read on every node; is the storage shared?")
    return Snapshot.from_bytes(data, get_ray_device())


class _Chief:
    """Rank 0, who writes checkpoints and talks with the driver."""

    def __init__(self, config: TrainConfig, line: Line) -> None:
        assert config.name is not None  # noqa: S101
        self._line = line
        self._attempt = 0
        self._told_s = 0.0
        self._cadence = Cadence(config.checkpoint_every)
        line.follow(self._cadence.ask)
        self.checkpoints = Checkpoints(config.storage, config.name, lambda text: line.tell("message", text))

    def begin(self, shard: Shard) -> Place | None:
        """Takes a number for this try, then looks where to go on: from then on earlier tries write no more."""
        about = {"began_at": time.time(), "workers": shard.world_size, "host": platform.node()}
        self._attempt = self.checkpoints.begin_try(about)
        newest = self.checkpoints.newest()
        self.checkpoints.sweep()
        return newest[0] if newest else None

    def listeners(self, writer: BackgroundWriter, resume: Snapshot | None, shard: Shard) -> dict[str, Any]:
        """Arguments of `fit`."""
        start = (resume.epoch, resume.step, resume.history) if resume else (0, 0, [])
        self._line.tell_surely("start", (*start, shard.world_size))

        def on_step(epoch: int, done: int, steps: int) -> None:
            if done == steps or time.monotonic() - self._told_s > _STEP_INTERVAL_S:
                self._told_s = time.monotonic()
                self._line.tell("step", (epoch, done, steps))

        def on_epoch(report: EpochReport, weights: Weights) -> None:
            del weights
            self._line.tell_surely("epoch", report)

        def on_snapshot(snapshot: Snapshot) -> None:
            place = Place(self._attempt, snapshot.epoch, snapshot.step)
            writer.write(place, snapshot.to_bytes(), snapshot.history[-1] if snapshot.history else {})
            self._cadence.saved()

        def wish(epoch: int, step: int) -> Wish:
            return self._cadence(epoch, step)

        def on_message(text: str) -> None:
            self._line.tell("message", text)

        return {"on_step": on_step, "on_epoch": on_epoch, "on_snapshot": on_snapshot, "wish": wish, "on_message": on_message}

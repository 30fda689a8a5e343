"""What a worker does between the loop and the storage, with Ray's part of it replaced by the least that will do."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.training.loop.command import Command
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.on_ray import worker_function
from cifar_ray.training.on_ray.worker_function import train_worker
from cifar_ray.training.records.checkpoint import STATE_FILE, Checkpoints
from cifar_ray.training.records.results import FitResult
from cifar_ray.training.records.run_folder import Run

RECIPE = {
    "dataset": "digits",
    "model": "cnn3",
    "epochs": 3,
    "batch_size": 18,
    "precision": "fp32",
    "optimizer": {"name": "adamw", "lr": 0.01},
}


class FakeChannel:
    """Records all events, and requests a stop after so many steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[tuple[str, Any]] = []
        self.request: Callable[[Command, int], None] = lambda *_: None
        self._left = stop_after

    def send(self, kind: str, content: Any) -> None:
        self.events.append((kind, content))
        if kind == "step" and self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.request(Command.STOP, 0)

    send_and_wait = send

    def on_command(self, handle: Callable[[Command, int], None]) -> None:
        self.request = handle

    def confirm_saved(self, number: int) -> None:
        self.events.append(("saved", number))

    def of(self, kind: str) -> list[Any]:
        return [content for sent, content in self.events if sent == kind]


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch, few_stripes: DatasetSplits) -> None:
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(worker_function.train, "get_context", lambda: context)
    monkeypatch.setattr(worker_function, "broadcast_from_rank_zero", lambda data: data)
    monkeypatch.setattr(worker_function, "get_ray_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker_function, "open_splits", lambda config: few_stripes)
    monkeypatch.setattr(worker_function, "_STEP_INTERVAL_S", 0.0)


def run(storage: Path, name: str, channel: FakeChannel) -> FitResult | None:
    config = parse_config(TrainConfig, RECIPE | {"storage": str(storage), "name": name})
    probe = Run(config).begin()
    return train_worker({"config": config.model_dump(mode="json"), "channel": channel, "threads": 1, "probe": probe})


def final(storage: Path, name: str) -> dict[str, torch.Tensor]:
    newest = Checkpoints(str(storage), name).newest()
    assert newest is not None
    model: dict[str, torch.Tensor] = Snapshot.from_bytes(newest[1], torch.device("cpu")).state["model"]
    return model


def test_a_worker_that_is_asked_to_stop_saves_and_the_next_one_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, first, second = FakeChannel(), FakeChannel(stop_after=6), FakeChannel()
    result = run(tmp_path, "whole", whole)
    assert run(tmp_path, "cut", first) is None
    assert [report.epoch for report in first.of("epoch")] == [1]
    again = run(tmp_path, "cut", second)
    assert result is not None
    assert again is not None
    assert (again.best_epoch, again.metrics) == (result.best_epoch, result.metrics)
    ((epoch, step, history, workers),) = second.of("start")
    assert (epoch, step, len(history), workers) == (1, 3, 1, 1)
    assert [report.epoch for report in second.of("epoch")] == [2, 3]
    weights, expected = final(tmp_path, "cut"), final(tmp_path, "whole")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert Checkpoints(str(tmp_path), "cut").attempts() == 2


def test_a_worker_falls_back_to_the_checkpoint_before_a_damaged_one_and_says_so(tmp_path: Path) -> None:
    whole, channel = FakeChannel(), FakeChannel()
    run(tmp_path, "run", whole)
    newest, before = Checkpoints(str(tmp_path), "run").places()
    (tmp_path / "runs" / "run" / newest.folder / STATE_FILE).write_bytes(b"torn")
    expected_epoch = before.epoch
    run(tmp_path, "run", channel)
    assert [(epoch, step) for epoch, step, _, _ in channel.of("start")] == [(expected_epoch, 0)]
    assert channel.of("message") == [f"checkpoint {newest.folder}: state.pt is damaged; trying an older checkpoint"]
    assert [report.epoch for report in channel.of("epoch")] == [3]

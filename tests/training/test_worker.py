"""What a worker does between the loop and the storage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.training.loop import worker
from cifar_ray.training.loop.command import Command
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.loop.worker import run_worker
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
def each_step_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_STEP_INTERVAL_S", 0.0)


def run(storage: Path, name: str, channel: FakeChannel, splits: DatasetSplits) -> FitResult | None:
    config = parse_config(TrainConfig, RECIPE | {"storage": str(storage), "name": name})
    Run(config).begin()
    return run_worker(config, splits, channel, torch.device("cpu"), Shard(), lambda place: place)


def final(storage: Path, name: str) -> dict[str, torch.Tensor]:
    newest = Checkpoints(str(storage), name).newest()
    assert newest is not None
    model: dict[str, torch.Tensor] = Snapshot.from_bytes(newest[1], torch.device("cpu")).state["model"]
    return model


def test_a_worker_that_is_asked_to_stop_saves_and_the_next_one_ends_with_the_same_weights(
    tmp_path: Path, few_stripes: DatasetSplits
) -> None:
    whole, first, second = FakeChannel(), FakeChannel(stop_after=6), FakeChannel()
    result = run(tmp_path, "whole", whole, few_stripes)
    assert run(tmp_path, "cut", first, few_stripes) is None
    assert [report.epoch for report in first.of("epoch")] == [1]
    again = run(tmp_path, "cut", second, few_stripes)
    assert result is not None
    assert again is not None
    assert (again.best_epoch, again.metrics) == (result.best_epoch, result.metrics)
    ((epoch, step, history, workers),) = second.of("start")
    assert (epoch, step, len(history), workers) == (1, 3, 1, 1)
    assert [report.epoch for report in second.of("epoch")] == [2, 3]
    weights, expected = final(tmp_path, "cut"), final(tmp_path, "whole")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert Checkpoints(str(tmp_path), "cut").attempts() == 2


def test_a_worker_falls_back_to_the_checkpoint_before_a_damaged_one_and_says_so(tmp_path: Path, few_stripes: DatasetSplits) -> None:
    whole, channel = FakeChannel(), FakeChannel()
    run(tmp_path, "run", whole, few_stripes)
    newest, before = Checkpoints(str(tmp_path), "run").places()
    (tmp_path / "runs" / "run" / newest.folder / STATE_FILE).write_bytes(b"torn")
    expected_epoch = before.epoch
    run(tmp_path, "run", channel, few_stripes)
    assert [(epoch, step) for epoch, step, _, _ in channel.of("start")] == [(expected_epoch, 0)]
    assert channel.of("message") == [f"checkpoint {newest.folder}: state.pt is damaged; trying an older checkpoint"]
    assert [report.epoch for report in channel.of("epoch")] == [3]

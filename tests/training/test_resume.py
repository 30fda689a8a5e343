"""A training that is cut off anywhere, and goes on: without Ray, by leaving the loop where the cut is."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import TrainingError
from cifar_ray.training.loop.command import Command
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.optimizers import peak_learning_rate
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.loop.step_monitor import Stopped
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.records.results import EpochReport, FitResult, Weights
from tests.conftest import make_stripes

CPU = torch.device("cpu")
ADAMW = {
    "model": "cnn3",  # has dropout
    "optimizer": {"name": "adamw", "lr": 0.01},
    "augmentation": {"flip": "alternating", "translate_px": 1, "mixup": 0.4, "noise_std": 0.05},
    "averaging": {"name": "ema"},
}
MUON = {"stem_epochs": 2, "averaging": {"name": "ema"}}
COMMON = {"epochs": 3, "batch_size": 18, "micro_batch_size": 5, "precision": "fp32", "test_time_augmentation": "none", "patience": 2}


class Killed(Exception):  # noqa: N818
    """Stands for the end of a process."""


class Job:
    """A training whose checkpoints outlive its process."""

    def __init__(self, splits: DatasetSplits, recipe: dict[str, Any], shard: Shard | None = None) -> None:
        self.config = parse_config(TrainConfig, COMMON | recipe)
        self.splits, self.shard = splits, shard or Shard()
        self.saved: bytes | None = None
        self.reports: list[EpochReport] = []
        self.messages: list[str] = []
        self.weights: list[Weights] = []

    def run(self, *, save_every: int = 0, kill_at: int | None = None, stop_at: int | None = None) -> FitResult:
        """Starts a process, from what the last one saved; steps are counted over the whole training."""
        done = 0
        start = Snapshot.from_bytes(self.saved, CPU) if self.saved else None
        self.reports = [EpochReport(**figures) for figures in start.history] if start else []

        def on_step(epoch: int, step: int, steps: int) -> None:
            nonlocal done
            done = (epoch - 1) * steps + step
            if done == kill_at:
                raise Killed

        def next_command(epoch: int, step: int) -> Command:
            del epoch
            if stop_at is not None and done >= stop_at:
                return Command.STOP
            return Command.SAVE if step == 0 or (save_every and done % save_every == 0) else Command.CONTINUE

        def on_snapshot(snapshot: Snapshot) -> None:
            self.saved = snapshot.to_bytes()

        def on_epoch(report: EpochReport, weights: Weights) -> None:
            self.reports.append(report)
            self.weights.append({name: tensor.clone() for name, tensor in weights.items()})

        return fit(
            self.config,
            self.splits,
            device=CPU,
            shard=self.shard,
            on_step=on_step,
            on_epoch=on_epoch,
            on_snapshot=on_snapshot,
            next_command=next_command,
            resume=start,
            on_message=self.messages.append,
        )

    def end(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """History without times, and the whole state of the last snapshot."""
        assert self.saved is not None
        timeless = ("seconds", "images_per_s")
        history = [{key: value for key, value in report.figures().items() if key not in timeless} for report in self.reports]
        return history, Snapshot.from_bytes(self.saved, CPU).state


def assert_same(one: Any, two: Any, where: str = "state") -> None:
    """Equal to the last bit."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for number, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_same(left, right, f"{where}[{number}]")
    else:
        assert one == two, where


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, tuple[Any, Any]]:
    return {}


@pytest.mark.parametrize("kill_at", [1, 4, 6, 11])  # four steps an epoch
@pytest.mark.parametrize("recipe", [ADAMW, MUON], ids=["adamw-dropout-mixup-ema", "muon-ema"])
def test_killed_after_any_step_the_same_command_ends_with_the_same_weights_and_history(
    few_stripes: DatasetSplits, narrow_airnet: None, recipe: dict, kill_at: int, uninterrupted: dict[str, Any]
) -> None:
    key = json.dumps(recipe)
    if key not in uninterrupted:
        whole = Job(few_stripes, recipe)
        uninterrupted[key] = (whole.run(save_every=2), whole.end())
    job = Job(few_stripes, recipe)
    with pytest.raises(Killed):
        job.run(save_every=2, kill_at=kill_at)
    result = job.run(save_every=2)
    expected, (history, state) = uninterrupted[key]
    assert_same((history, state), job.end())
    assert (result.best_epoch, result.metrics, result.test_confusion) == (expected.best_epoch, expected.metrics, expected.test_confusion)


def test_asked_to_stop_it_saves_at_the_next_step_and_goes_on_from_there(few_stripes: DatasetSplits) -> None:
    whole, job = Job(few_stripes, ADAMW), Job(few_stripes, ADAMW)
    whole.run()
    with pytest.raises(Stopped):
        job.run(stop_at=5)
    assert job.saved is not None
    stopped = Snapshot.from_bytes(job.saved, CPU)
    assert (stopped.epoch, stopped.step) == (1, 2)
    job.run()
    assert_same(whole.end(), job.end())


def _work(rank: int, folder: Path) -> None:
    """One of two workers: a whole training, one that is cut off within its second epoch, and that one's end."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    splits = DatasetSplits("stripes", make_stripes(72), make_stripes(30, seed=1), None)
    whole, job = (Job(splits, ADAMW | {"epochs": 2}, Shard(rank, 2)) for _ in range(2))
    whole.run(save_every=1)
    with pytest.raises(Killed):
        job.run(save_every=1, kill_at=7)
    saved = [job.saved]  # rank 0 alone writes
    dist.broadcast_object_list(saved)
    job.saved = saved[0]
    job.run(save_every=1)
    assert_same(whole.end(), job.end())
    dist.destroy_process_group()
    (folder / f"same-{rank}").touch()


@pytest.mark.slow
def test_two_workers_go_on_within_an_epoch_as_if_never_stopped(tmp_path: Path) -> None:
    processes.spawn(_work, (tmp_path,), nprocs=2)
    assert {path.name for path in tmp_path.glob("same-*")} == {"same-0", "same-1"}


SMALL = {"model": "small_cnn", "optimizer": {"name": "sgd", "lr": 0.02}, "augmentation": {"flip": "alternating", "mixup": 0.4}, "epochs": 3}


def _take_turns(rank: int, folder: Path) -> None:
    """Three workers that train until a kill within the second epoch, then two of them, then one."""
    torch.set_num_threads(1)
    splits = DatasetSplits("stripes", make_stripes(72), make_stripes(30, seed=1), None)
    for workers, kill_at in ((3, 2), (2, 6), (1, None)):
        if rank >= workers:
            return
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{workers}", rank=rank, world_size=workers)
        job = Job(splits, SMALL, Shard(rank, workers))
        state = folder / "state"
        job.saved = state.read_bytes() if state.exists() else None
        with nullcontext() if kill_at is None else pytest.raises(Killed):
            job.run(save_every=1, kill_at=kill_at)
        dist.barrier()  # all have read the state
        if rank == 0 and job.saved:
            state.write_bytes(job.saved)
        dist.barrier()
        dist.destroy_process_group()
    whole = Job(splits, SMALL)
    whole.run(save_every=1)
    (history, end), (expected, expected_end) = job.end(), whole.end()
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]
    for epoch, one in zip(history, expected, strict=True):
        assert epoch["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
        assert (epoch["learning_rate"], epoch["train_accuracy"]) == (one["learning_rate"], one["train_accuracy"])
    for name, weights in expected_end["model"].items():
        torch.testing.assert_close(end["model"][name], weights, atol=1e-4, rtol=1e-3)
    (folder / "same").touch()


@pytest.mark.slow
def test_three_workers_then_two_then_one_do_the_steps_that_one_would_have_done(tmp_path: Path) -> None:
    processes.spawn(_take_turns, (tmp_path,), nprocs=3)
    assert (tmp_path / "same").exists()


@pytest.mark.parametrize("ends", [1, 2, 3])  # before the stem is frozen, with it, and after it
def test_a_run_that_is_extended_trains_its_stem_in_the_epochs_of_a_run_of_that_length(
    few_stripes: DatasetSplits, narrow_airnet: None, ends: int
) -> None:
    job = Job(few_stripes, {"stem_epochs": 2, "patience": None, "epochs": ends})
    job.run()
    job.config = job.config.model_copy(update={"epochs": 5})
    job.run()
    biases = {report.epoch: weights["whitening.bias"] for report, weights in zip(job.reports, job.weights, strict=True)}
    assert list(biases) == [1, 2, 3, 4, 5]
    assert not torch.equal(biases[1], biases[2])
    for epoch in (3, 4, 5):
        assert torch.equal(biases[2], biases[epoch])


@pytest.mark.parametrize("optimizer", [{}, {"name": "sgd", "lr": 0.1, "head_factor": 10}, {"name": "adamw", "lr": 0.01, "bias_factor": 3}])
def test_the_learning_rate_in_the_history_is_optimizer_lr_in_the_last_step_of_the_epoch(
    few_stripes: DatasetSplits, narrow_airnet: None, optimizer: dict[str, Any]
) -> None:
    job = Job(few_stripes, MUON | {"optimizer": optimizer, "schedule": {"name": "linear", "final_factor": 0.0}, "patience": None})
    job.run()
    peak = peak_learning_rate(job.config.optimizer, job.config.batch_size)
    assert [report.learning_rate for report in job.reports] == pytest.approx([peak * (1 - step / 12) for step in (3, 7, 11)])


def test_other_numbers_of_workers_take_over_within_an_epoch(few_stripes: DatasetSplits) -> None:
    job = Job(few_stripes, MUON)
    with pytest.raises(Stopped):
        job.run(stop_at=2)
    assert job.saved is not None
    snapshot = Snapshot.from_bytes(job.saved, CPU)
    workers = snapshot.state["workers"]
    sums, buffers = (
        torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64),
        workers["buffers"].expand(2, -1) * torch.tensor([[1.0], [3.0]]),
    )
    snapshot.state["workers"] = workers | {"sums": sums, "buffers": buffers}
    trainer = Trainer(job.config, few_stripes, CPU, Shard())
    snapshot.restore(trainer)
    assert trainer.sums.tolist() == [4, 7]
    statistics = torch.cat([buffer.flatten() for buffer in trainer.model.buffers() if buffer.is_floating_point()])
    torch.testing.assert_close(statistics, workers["buffers"][0, : len(statistics)] * 2)


def poisoned(splits: DatasetSplits, steps: list[int], monkeypatch: pytest.MonkeyPatch, always: bool = False) -> DatasetSplits:
    """The same splits; the loss of the given calls of a step, counted from 1 over the process, is NaN."""
    calls = 0
    real = Trainer.train_step

    def train_step(self: Trainer, step: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in steps or (always and calls > steps[0]):
            pieces = [(inputs * float("nan"), labels) for inputs, labels in step.pieces]
            step = dataclasses.replace(step, pieces=iter(pieces))
        return real(self, step)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    return splits


def test_a_nan_stops_the_run_names_its_step_and_leaves_the_last_good_checkpoint(
    few_stripes: DatasetSplits, narrow_airnet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(poisoned(few_stripes, [7], monkeypatch), MUON)
    with pytest.raises(TrainingError, match="the loss is nan in step 3 of epoch 2; lower the learning rate"):
        job.run(save_every=1)
    assert job.saved is not None
    good = Snapshot.from_bytes(job.saved, CPU)
    assert (good.epoch, good.step) == (1, 2)
    assert all(torch.isfinite(weights).all() for weights in good.state["model"].values())


def test_skip_leaves_out_the_step_and_nothing_else(
    few_stripes: DatasetSplits, narrow_airnet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(poisoned(few_stripes, [6, 7], monkeypatch), MUON | {"on_nan": "skip"})
    job.run()
    assert [message for message in job.messages if "skipped" in message] == [
        f"skipped step {step} of epoch 2: loss or gradients are not finite" for step in (2, 3)
    ]
    history, state = job.end()
    assert all(torch.isfinite(weights).all() for weights in state["model"].values())
    assert len(history) == 3
    assert all(0 < epoch["train_loss"] < 10 for epoch in history)


def test_skip_gives_up_when_nothing_but_nan_comes(few_stripes: DatasetSplits, narrow_airnet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(poisoned(few_stripes, [2], monkeypatch, always=True), MUON | {"on_nan": "skip", "epochs": 9, "patience": None})
    with pytest.raises(TrainingError, match="20 steps in a row up to step 1 of epoch 6 had a loss or gradients that are not finite"):
        job.run()


def test_rewind_goes_back_to_the_last_checkpoint_at_half_the_rate(
    few_stripes: DatasetSplits, narrow_airnet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(poisoned(few_stripes, [11], monkeypatch), MUON | {"on_nan": "rewind"})
    job.run()
    assert job.messages == ["the loss is nan in step 3 of epoch 3: rewinding to epoch 3, step 1, with learning rate × 0.5"]
    assert [report.epoch for report in job.reports] == [1, 2, 3]
    plain = Job(few_stripes, MUON)
    plain.run()
    assert job.reports[2].learning_rate == pytest.approx(plain.reports[2].learning_rate / 2)


def test_rewind_goes_back_three_times_at_most(few_stripes: DatasetSplits, narrow_airnet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(poisoned(few_stripes, [5], monkeypatch, always=True), MUON | {"on_nan": "rewind"})
    with pytest.raises(TrainingError, match="even after 3 rewinds"):
        job.run()
    assert len(job.messages) == 3

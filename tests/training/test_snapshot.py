"""A training that goes on from a snapshot."""

import dataclasses

import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.records.results import EpochReport, FitResult, Weights

CPU = torch.device("cpu")
COMMON = {"epochs": 3, "batch_size": 24, "test_time_augmentation": "none"}
SMALL = {"model": "small_cnn", "optimizer": {"name": "adamw", "lr": 0.01}, "augmentation": {"flip": "alternating", "translate_px": 1}}

MUON = {"stem_epochs": 2, "precision": "fp32", "batch_size": 36}


def train(
    splits: DatasetSplits, recipe: dict, start: bytes | None = None
) -> tuple[FitResult, list[EpochReport], list[Weights], list[bytes]]:
    reports, weights, snapshots = [], [], []

    def on_epoch(report: EpochReport, state: Weights) -> None:
        reports.append(report)
        weights.append({name: tensor.clone() for name, tensor in state.items()})

    result = fit(
        parse_config(TrainConfig, COMMON | recipe),
        splits,
        device=CPU,
        shard=Shard(),
        on_step=lambda *_: None,
        on_epoch=on_epoch,
        on_snapshot=lambda snapshot: snapshots.append(snapshot.to_bytes()),
        resume=Snapshot.from_bytes(start, CPU) if start else None,
    )
    return result, reports, weights, snapshots


@pytest.mark.parametrize(
    ("recipe", "after"),
    [
        (SMALL | {"precision": "fp32"}, 1),
        (SMALL | {"precision": "fp16"}, 2),
        (MUON, 1),
        (MUON | {"precision": "bf16"}, 2),
        (MUON | {"averaging": {"name": "ema"}}, 1),
        (SMALL | {"model": "cnn3", "averaging": {"name": "lookahead", "decay": 0.5, "every_steps": 2}}, 1),
    ],
    ids=["adamw", "fp16-scaler", "muon-before-its-stem-freezes", "muon-after", "ema", "lookahead-between-two-updates-and-dropout"],
)
def test_a_training_that_goes_on_ends_as_if_it_had_never_stopped(
    few_stripes: DatasetSplits, narrow_airnet: None, recipe: dict, after: int
) -> None:
    whole, reports, weights, snapshots = train(few_stripes, recipe)
    resumed, later, later_weights, _ = train(few_stripes, recipe, start=snapshots[after - 1])
    assert [report.epoch for report in later] == list(range(after + 1, 4))
    for one, two in zip(reports[after:], later, strict=True):
        timeless = {"seconds": 0.0, "images_per_s": 0.0}
        assert dataclasses.replace(one, **timeless) == dataclasses.replace(two, **timeless)
    assert all(torch.equal(weights[-1][name], later_weights[-1][name]) for name in weights[-1])
    assert (resumed.best_epoch, resumed.metrics) == (whole.best_epoch, whole.metrics)


def test_a_snapshot_of_the_last_epoch_ends_at_once_with_the_same_result(stripes: DatasetSplits) -> None:
    whole, _, _, snapshots = train(stripes, SMALL)
    again, later, _, _ = train(stripes, SMALL, start=snapshots[-1])
    assert later == []
    assert (again.best_epoch, again.metrics) == (whole.best_epoch, whole.metrics)

"""What training says of uneven classes, and that its settings help the rare ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.training.class_balance import advise, describe_figures
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.records.results import EpochReport, FitResult

SETTINGS = {
    "model": "small_cnn",
    "epochs": 3,
    "batch_size": 24,
    "precision": "fp32",
    "label_smoothing": 0.0,
    "test_time_augmentation": "none",
    "optimizer": {"name": "adamw", "lr": 0.01},
    "augmentation": {"flip": "none", "translate_px": 1},
}


@pytest.fixture
def rare(stripes: DatasetSplits) -> DatasetSplits:
    """80 training images of two classes, 7 of the third."""
    train = stripes.train
    rows = np.concatenate([np.flatnonzero(train.labels < 2), np.flatnonzero(train.labels == 2)[:7]])
    return dataclasses.replace(stripes, train=train.subset(rows))


def config(**changes: object) -> TrainConfig:
    return parse_config(TrainConfig, SETTINGS | changes)


def run(splits: DatasetSplits, **changes: object) -> FitResult:
    silent = {"on_step": lambda *_: None, "on_epoch": lambda *_: None}
    return fit(config(**changes), splits, device=torch.device("cpu"), shard=Shard(), **silent)


def test_a_rare_class_brings_one_line_with_the_flags_that_help(rare: DatasetSplits, stripes: DatasetSplits) -> None:
    assert advise(config(), rare) == (
        "class 'plain' has 7 training pictures, the largest ('horizontal') has 80: try --class-weights balanced or --sampling balanced"
    )
    assert advise(config(), stripes) == ""
    for set_already in ({"class_weights": "balanced"}, {"sampling": "balanced"}):
        assert advise(config(**set_already), rare) == ""


def test_balanced_sampling_finds_more_of_a_rare_class(rare: DatasetSplits) -> None:
    plain, helped = run(rare, epochs=4), run(rare, epochs=4, sampling="balanced")
    for metrics in (plain.metrics, helped.metrics):
        assert {"val_balanced_accuracy", "val_macro_f1", "test_balanced_accuracy", "test_macro_f1"} <= set(metrics)
        assert metrics["test_balanced_accuracy"] == pytest.approx(metrics["test_accuracy"])  # the test classes are equally large
    assert helped.metrics["test_balanced_accuracy"] > plain.metrics["test_balanced_accuracy"] + 0.1


@pytest.mark.parametrize("changes", [{"class_weights": "balanced"}, {"loss": "focal"}])
def test_weights_and_focal_loss_reach_the_training(rare: DatasetSplits, changes: dict[str, object]) -> None:
    def first_loss(**settings: object) -> float:
        reports: list[EpochReport] = []
        fit(
            config(epochs=1, **settings),
            rare,
            device=torch.device("cpu"),
            shard=Shard(),
            on_step=lambda *_: None,
            on_epoch=lambda report, _: reports.append(report),
        )
        return reports[0].train_loss

    assert first_loss(**changes) != pytest.approx(first_loss(), rel=0.01)


def test_even_classes_have_no_further_figures(few_stripes: DatasetSplits) -> None:
    assert not [name for name in run(few_stripes, epochs=1).metrics if "balanced" in name or "f1" in name]


def test_accuracies_of_few_pictures_have_their_interval() -> None:
    metrics = {"val_accuracy": 144 / 153, "test_accuracy": 0.9412, "test_accuracy_tta": 0.95}
    assert describe_figures(metrics, {"val": 153, "test": 10_000}) == (
        "accuracy  validation 94.1 % (89.2–96.9 %, 153 pictures), test 94.12 %, test, views averaged 95.00 %"
    )
    uneven = {"val_balanced_accuracy": 0.5, "val_macro_f1": 0.45}
    assert describe_figures({"val_accuracy": 0.5} | uneven, {}).splitlines() == [
        "accuracy  validation 50.00 %",
        "uneven classes  validation balanced accuracy 50.00 %, macro-F1 45.00 %",
    ]
    assert describe_figures({}, {}) == "accuracy  no validation or test images"

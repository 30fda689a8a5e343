"""EMA and lookahead of weights, without Ray."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cifar_ray.config import AveragingConfig, TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.training.loop.averaging import WeightAverage
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.records.results import Weights

CPU = torch.device("cpu")


def network(value: float) -> nn.Module:
    """With weights and batch-norm statistics that all have one value, but for the batches counted."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    set_to(model, value)
    return model


def set_to(model: nn.Module, value: float) -> None:
    for tensor in model.state_dict().values():
        tensor.fill_(value)


def values(model: nn.Module) -> set[float]:
    return {number for tensor in model.state_dict().values() for number in tensor.double().flatten().tolist()}


def test_ema_follows_the_weights_slowly_once_it_has_left_the_start() -> None:
    model = network(0)
    average = WeightAverage(model, AveragingConfig(name="ema", decay=0.5))
    expected = 0.0
    for step in range(1, 8):
        set_to(model, step)
        average.after_step(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert sorted(values(average.network)) == pytest.approx([expected, 7.0]), "counted batches are those of the model"
    assert values(model) == {7.0}


def test_lookahead_goes_on_from_its_average_every_few_steps() -> None:
    model = network(0)
    average = WeightAverage(model, AveragingConfig(name="lookahead", decay=0.75, every_steps=2))
    set_to(model, 4)
    average.after_step(model)
    assert values(model) == {4.0}
    assert values(average.network) == {0.0}
    average.after_step(model)
    assert values(model) == values(average.network) == {1.0, 4.0}, "a quarter of the way; counted batches are not averaged"


def config(**changes: object) -> TrainConfig:
    values = {"model": "small_cnn", "epochs": 2, "batch_size": 24, "precision": "fp32", "test_time_augmentation": "none"}
    optimizer = {"name": "adamw", "lr": 0.01}
    return parse_config(TrainConfig, values | {"optimizer": optimizer, "augmentation": {"flip": "none", "translate_px": 1}} | changes)


@pytest.mark.parametrize("averaging", [{"name": "ema", "decay": 0.9}, {"name": "lookahead", "decay": 0.5, "every_steps": 5}])
def test_the_average_is_what_is_evaluated_and_kept(few_stripes: DatasetSplits, averaging: dict) -> None:
    kept: list[Weights] = []
    job = config(averaging=averaging)
    result = fit(
        job,
        few_stripes,
        device=CPU,
        shard=Shard(),
        on_step=lambda *_: None,
        on_epoch=lambda _report, weights: kept.append({name: tensor.clone() for name, tensor in weights.items()}),
    )
    trainer = Trainer(config(), few_stripes, CPU, Shard())
    trainer.model.load_state_dict(kept[result.best_epoch - 1])
    assert trainer.evaluate(few_stripes.test).accuracy == result.metrics["test_accuracy"]


def test_an_average_changes_nothing_of_how_the_weights_learn(few_stripes: DatasetSplits) -> None:
    plain, averaged = (Trainer(config(averaging=averaging), few_stripes, CPU, Shard()) for averaging in ({}, {"name": "ema"}))
    for trainer in (plain, averaged):
        trainer.train_epoch(0, lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.state_dict().values(), averaged.model.state_dict().values(), strict=True))
    assert not torch.equal(averaged.network.head.weight, averaged.model.head.weight)

"""Depthwise convolutions in float32."""

import copy
import pickle

import pytest
import torch
from torch import nn

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.models.precision import depthwise_in_float32
from cifar_ray.training.loop.trainer import Trainer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2))


def kinds(model: nn.Module) -> list[bool]:
    return [getattr(one, "computes_in_float32", False) for one in model.modules() if isinstance(one, nn.Conv2d)]


def test_only_depthwise_convolutions_compute_in_float32_and_weights_keep_their_names() -> None:
    plain = network()
    changed = depthwise_in_float32(copy.deepcopy(plain))
    assert kinds(changed) == [False, True, False]
    assert isinstance(changed[1], nn.Conv2d)
    assert changed.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 9, 9)
    assert torch.equal(changed(images), plain(images))
    inputs = torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = changed[1](inputs)
        assert outputs.dtype == torch.bfloat16 == changed(images).dtype
        assert not torch.equal(outputs, plain[1](inputs)), "bf16 rounds the inputs, too"
    assert torch.equal(outputs, plain[1](inputs).to(torch.bfloat16))
    outputs.float().sum().backward()
    assert changed[1].weight.grad is not None
    assert changed[1].weight.grad.dtype == torch.float32


def test_copies_and_repeated_changes_are_the_same() -> None:
    once = depthwise_in_float32(network())
    kind = type(once[1])
    assert type(depthwise_in_float32(once)[1]) is kind
    assert type(copy.deepcopy(once)[1]) is kind
    images = torch.randn(1, 3, 9, 9)
    again = pickle.loads(pickle.dumps(once))  # noqa: S301
    assert type(again[1]) is kind
    assert torch.equal(again(images), once(images))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_training_on_a_cpu_uses_them(stripes: DatasetSplits, precision: str) -> None:
    settings = {"model": "timm:mobilenetv3_small_050", "batch_size": 24, "precision": precision, "optimizer": {"name": "sgd", "lr": 0.01}}
    one = Trainer(parse_config(TrainConfig, settings), stripes, torch.device("cpu"), Shard())
    assert sum(kinds(one.model)) > 5
    loss, _ = one.train_epoch(0, lambda *_: None)
    assert loss > 0

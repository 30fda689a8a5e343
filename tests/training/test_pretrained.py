"""Training that begins with ImageNet's weights; the download is replaced."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import ResNet50_Weights

from cifar_ray import __main__ as console
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.loader import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.models import create_model
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.weights.pretrained import IMAGENET_STATISTICS, imagenet_weights

CPU = torch.device("cpu")


def config(model: str) -> TrainConfig:
    return parse_config(TrainConfig, {"model": model, "pretrained": True, "optimizer": {"name": "sgd"}, "batch_size": 60})


def unreachable(*_args: object, **_kwargs: object) -> None:
    raise urllib.error.URLError("no route to host")


def test_all_but_the_head_begins_with_imagenets_weights_and_inputs_are_normalised_for_them(
    stripes: DatasetSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = create_model("resnet50", num_classes=1000, image_size=224).state_dict()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *_args, **_kwargs: published)
    trainer = Trainer(config("resnet50"), stripes, CPU, Shard())
    own: dict[str, Any] = trainer.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in published.items() if not name.startswith("fc."))
    assert own["fc.weight"].shape == (3, 2048)
    assert (trainer.normalization.mean, trainer.normalization.std) == IMAGENET_STATISTICS


def test_weights_that_cannot_be_downloaded_are_one_line_that_says_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(DataError, match=r"resnet50-\w+\.pth \(.*no route to host.*checkpoints, or pass --no-pretrained") as refused:
        imagenet_weights("resnet50")
    assert "\n" not in str(refused.value)


def test_a_damaged_file_of_weights_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / Path(ResNet50_Weights.IMAGENET1K_V2.url).name).write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"cannot load the ImageNet weights .* put this file into"):
        imagenet_weights("resnet50")


def test_an_architecture_without_such_weights_is_refused(stripes: DatasetSplits) -> None:
    with pytest.raises(ConfigError, match=r"no ImageNet weights for small_cnn\. Available: resnet50\. Pass --no-pretrained"):
        Trainer(config("small_cnn"), stripes, CPU, Shard())


def test_a_user_hears_of_it_before_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    flags = ["--dataset", "digits", "--recipe", "resnet50_finetune", "--storage", str(tmp_path)]
    assert console.main(["train", *flags]) == 2
    first, rate, *_, error = capsys.readouterr().err.splitlines()
    assert first.endswith("model resnet50")
    assert rate == "sgd, peak learning rate 0.02 (0.02 for batch size 128, linear scaling to 128)"
    assert error.startswith("error: pretrained: ")
    assert not (tmp_path / "runs").exists()

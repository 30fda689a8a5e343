"""Pretrained weights of timm's networks from files and the hub: what fits is loaded, and what does not is one line."""

from __future__ import annotations

import io
import time
import urllib.error
from datetime import UTC, datetime
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import CifarRayError, ConfigError, DataError
from cifar_ray.inference.exporting.export import export
from cifar_ray.models import create_model
from cifar_ray.models.timm_networks import pretrained_config
from cifar_ray.store import Architecture, Bundle, Manifest, PretrainedOrigin
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.weights import hub
from cifar_ray.training.weights.initial_network import create_from
from cifar_ray.training.weights.pretrained import find_pretrained, load_pretrained

CPU = torch.device("cpu")
VIT, CNN = "timm:test_vit", "timm:test_efficientnet"


def published(name: str, size: int = 32, classes: int = 1000) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {key: tensor.contiguous() for key, tensor in create_model(name, classes, size).state_dict().items()}


def load(name: str, source: Path | str, size: int = 32) -> nn.Module:
    torch.manual_seed(8)
    network = create_model(name, 3, size)
    load_pretrained(network, name, str(source))
    return network


def assert_body(network: nn.Module, weights: dict[str, Tensor], head: str) -> None:
    own = network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items() if not name.startswith(head))


def refused(source: Path | str, name: str = CNN, kind: type[CifarRayError] = ConfigError) -> str:
    with pytest.raises(kind) as error:
        load(name, source)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "head"), [(VIT, "head."), (CNN, "classifier."), ("timm:test_convnext", "head.fc.")])
def test_all_but_the_head_comes_from_the_file_whatever_its_number_of_classes(tmp_path: Path, name: str, head: str) -> None:
    weights = published(name)
    save_file(weights, tmp_path / "a.safetensors")
    network = load(name, tmp_path / "a.safetensors")
    assert_body(network, weights, head)
    assert network.state_dict()[f"{head}weight"].shape[0] == 3


def test_a_file_without_a_head_and_a_half_precision_file_fit(tmp_path: Path) -> None:
    weights = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in published(CNN).items()}
    save_file({key: tensor for key, tensor in weights.items() if not key.startswith("classifier.")}, tmp_path / "a.safetensors")
    network = load(CNN, tmp_path / "a.safetensors")
    assert network.conv_stem.weight.dtype == torch.float32
    assert torch.equal(network.conv_stem.weight, weights["conv_stem.weight"].float())


def test_a_checkpoint_of_a_training_script_with_prefixes_of_its_wrapper_fits(tmp_path: Path) -> None:
    weights = published(CNN)
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in weights.items()}}, tmp_path / "a.pth")
    assert_body(load(CNN, tmp_path / "a.pth"), weights, "classifier.")


def test_position_embeddings_are_resized_to_another_image_size(tmp_path: Path) -> None:
    weights = published(VIT, size=64)
    save_file(weights, tmp_path / "a.safetensors")
    network = load(VIT, tmp_path / "a.safetensors", size=32)
    assert network.pos_embed.shape[1] < weights["pos_embed"].shape[1]
    assert torch.equal(network.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])


def bundle(name: str, size: int, **changes: object) -> Bundle:
    arguments = {"num_classes": 3, "image_size": size}
    values = {
        "architecture": Architecture(name=name, arguments=arguments),
        "class_names": ("a", "b", "c"),
        "image_size_px": size,
        "channel_mean": (0.1, 0.2, 0.3),
        "channel_std": (0.4, 0.5, 0.6),
        "resize_policy": "pad",
        "dataset_name": "pets",
        "dataset_fingerprint": "d" * 64,
        "created_at": datetime(2025, 1, 2, tzinfo=UTC),
    }
    torch.manual_seed(7)
    return Bundle(Manifest.model_validate(values | changes), create_model(name, **arguments).state_dict(), "pets", 1)


def test_an_export_brings_its_own_normalisation_and_licence(tmp_path: Path) -> None:
    made = bundle(CNN, 32, pretrained=PretrainedOrigin(source="somewhere", license="MIT"))
    with torch.no_grad():
        made.weights["classifier.weight"].normal_()
    export(made, "safetensors", str(tmp_path / "a.safetensors"))
    found = find_pretrained(CNN, str(tmp_path / "a.safetensors"))
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.origin.source, found.origin.license) == ("a.safetensors", "MIT")
    assert len(found.origin.sha256) == 64


def test_a_saved_transformer_is_fine_tuned_at_another_image_size() -> None:
    parent = bundle(VIT, 64)
    network = create_from(parent, ("c", "new"), 32, {})
    assert torch.equal(network.blocks[0].attn.qkv.weight, parent.weights["blocks.0.attn.qkv.weight"])
    assert torch.equal(network.head.weight[0], parent.weights["head.weight"][2])
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize("name", [VIT, CNN])
def test_a_step_of_training_changes_every_weight(tmp_path: Path, stripes: DatasetSplits, name: str) -> None:
    save_file(published(name, size=16), tmp_path / "a.safetensors")
    few = DatasetSplits(stripes.name, stripes.train.subset(np.arange(24)), None, None)
    values = {"model": name, "pretrained": str(tmp_path / "a.safetensors"), "batch_size": 24, "precision": "fp32", "val_fraction": 0}
    trainer = Trainer(parse_config(TrainConfig, values | {"optimizer": {"name": "sgd", "lr": 0.1}}), few, CPU, Shard())
    before = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
    for epoch in range(2):
        trainer.train_epoch(epoch, lambda *_: None)
    after = dict(trainer.model.named_parameters())
    assert [key for key, tensor in after.items() if torch.equal(tensor, before[key])] == []
    assert trainer.normalization.mean == pretrained_config(name).mean


def test_weights_of_another_network_are_one_line(tmp_path: Path) -> None:
    save_file(published("timm:test_resnet"), tmp_path / "a.safetensors")
    message = refused(tmp_path / "a.safetensors")
    assert f"a.safetensors has the weights of another network, not of {CNN}: " in message
    assert "tensors are missing, the first is conv_stem.weight" in message
    narrow = {key: tensor[:1].contiguous() if key == "bn1.weight" else tensor for key, tensor in published(CNN).items()}
    save_file(narrow, tmp_path / "b.safetensors")
    assert "1 tensors have another shape, the first is bn1.weight" in refused(tmp_path / "b.safetensors")


def test_missing_truncated_and_hostile_files_are_one_line(tmp_path: Path) -> None:
    assert "none.safetensors: file not found" in refused(tmp_path / "none.safetensors")
    save_file(published(CNN), tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1000])
    assert "b.safetensors: not a weights file" in refused(tmp_path / "b.safetensors")
    torch.save({"state_dict": published(CNN), "path": tmp_path}, tmp_path / "c.pth")
    assert "not loaded for security" in refused(tmp_path / "c.pth")


def test_an_unknown_tag_is_one_line_that_lists_the_others() -> None:
    assert "timm:test_efficientnet has no weights 'in99k'. Available: r160_in1k" in refused("hub:in99k")


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


@pytest.mark.usefixtures("no_cache")
def test_without_network_the_line_says_which_file_is_needed_and_how_to_bring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(hub.urllib.request, "urlopen", unreachable)
    message = refused("hub", kind=DataError)
    assert "/timm/test_efficientnet.r160_in1k/resolve/main/model.safetensors (no route to host)" in message
    assert "--pretrained model.safetensors" in message
    assert "hf download timm/test_efficientnet.r160_in1k model.safetensors" in message
    assert "--model timm:tf_efficientnet_lite0" in message


@pytest.mark.usefixtures("no_cache")
def test_a_network_that_swallows_packets_takes_five_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: time.sleep(20))
    started = time.monotonic()
    with pytest.raises(DataError, match="timed out"):
        hub.download("timm/test_vit.r160_in1k", VIT)
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("no_cache")
def test_what_the_client_of_the_hub_reports_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError("401 Client Error\nRepository not found")

    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    assert "(401 Client Error Repository not found)" in refused("hub", kind=DataError)


def test_weights_in_the_cache_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = published(CNN)
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    assert_body(load(CNN, "hub:r160_in1k"), weights, "classifier.")
    found = find_pretrained(CNN, "hub")
    assert found.origin.source == "timm/test_efficientnet.r160_in1k"
    assert found.origin.license
    assert found.mean == pretrained_config(CNN).mean

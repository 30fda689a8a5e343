"""Names, sizes and stages of timm's networks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from cifar_ray.config import StartConfig
from cifar_ray.errors import ConfigError
from cifar_ray.models import check_model, create_model
from cifar_ray.models.stages import head_name, stages
from cifar_ray.models.timm_networks import list_timm
from cifar_ray.training.weights.initial_network import freeze, rate_factors

# One of each way to end: head at the top or inside, norms of each kind, tokens, several linear layers
NETWORKS = {
    "timm:test_resnet": "fc",
    "timm:test_efficientnet_evos": "classifier",
    "timm:test_convnext": "head.fc",
    "timm:test_mambaout": "head.fc",
    "timm:test_nfnet": "head.fc",
    "timm:test_vit": "head",
    "timm:test_vit3": "head",
    "timm:test_vit4": "head",
    "timm:test_vit_relpos": "head",
    "timm:test_coatnet": "head.fc",
    "timm:swin_tiny_patch4_window7_224": "head.fc",
    "timm:densenet121": "classifier",
    "timm:caformer_s18": "head.fc.fc2",
    "timm:efficientvit_b0": "head.classifier.4",
    "timm:tf_efficientnet_lite0": "classifier",
}


def test_the_project_is_imported_without_timm() -> None:
    """It takes seconds, which a server with another network does without."""
    code = "import sys, cifar_ray.models, cifar_ray.models.stages, cifar_ray.inference.predictor; print('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "False"


def test_a_network_of_ours_is_created_without_timm() -> None:
    code = "import sys; from cifar_ray.models import create_model; create_model('small_cnn', 3, 16, views=2); print('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_is_in_one_stage_and_the_head_is_the_last(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3, image_size=64)
    parts = stages(model)
    inside = [id(parameter) for stage in parts for parameter in stage.parameters()]
    assert sorted(inside) == sorted(map(id, model.parameters()))
    assert len({stage.name for stage in parts}) == len(parts)
    assert head_name(model) == parts[-1].name == NETWORKS[name]
    assert [id(parameter) for parameter in parts[-1].parameters()] == [
        id(parameter) for parameter in model.get_submodule(NETWORKS[name]).parameters()
    ]
    assert not any("norm" in stage.name.rpartition(".")[2] for stage in parts), "norms belong to the stage before them"


def test_class_token_and_position_embeddings_belong_to_the_first_stage() -> None:
    model = create_model("timm:test_vit", 3, 32)
    first = list(map(id, stages(model)[0].parameters()))
    assert id(model.cls_token) in first
    assert id(model.pos_embed) in first
    frozen = freeze(model, StartConfig(model="a@1", freeze="backbone"))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["head.weight", "head.bias"]
    assert len(frozen) == len(stages(model)) - 1


@pytest.mark.parametrize("views", [1, 4])
def test_rates_fall_from_stage_to_stage(views: int) -> None:
    model = create_model("timm:test_vit", 3, 32, views=views)
    factors = rate_factors(model, 0.5)
    assert set(factors) == set(model.parameters())
    inner = model.network if views > 1 else model
    assert factors[inner.head.weight] == 1
    assert factors[inner.blocks[-1].mlp.fc1.weight] == factors[inner.norm.weight] == 0.5
    assert factors[inner.cls_token] == min(factors.values())


def test_views_have_the_stages_of_their_network() -> None:
    one, four = (create_model("timm:test_efficientnet", 3, 32, views=views) for views in (1, 4))
    assert [stage.name for stage in stages(four)] == [f"network.{stage.name}" for stage in stages(one)]
    assert isinstance(four.get_submodule(head_name(four)), nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_resnett", r"model: timm has no network 'test_resnett'; did you mean timm:test_resnet"),
        ("timm:zzzzzzzz", r"model: timm has no network 'zzzzzzzz'; --list-models timm:PATTERN shows them"),
        ("timm:", r"model: timm has no network ''; --list-models"),
        ("timm:tf_efficientnet_lite0.in99k", r"model: timm:tf_efficientnet_lite0 has no weights 'in99k'\. Available: in1k"),
        ("resnet19", r"unknown architecture 'resnet19'\. Available: airnet, .*, and timm's as timm:NAME"),
    ],
)
def test_an_unknown_name_is_one_line_that_suggests_others(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        check_model(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["timm:crossvit_9_240", "timm:resnetv2_50", "timm:levit_128s", "timm:dla34"])
def test_a_network_without_one_linear_head_is_one_line(name: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=r"does not end in one linear layer, .*; choose another network"):
        create_model(name, 3, 240)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("timm:test_vit", 40, r"for 40 px: Input height \(40\) should be divisible by patch size \(16\); its usual size is 160 px"),
        ("timm:coatnet_0_rw_224", 100, r"for 100 px: .*; its usual size is 224 px"),
    ],
)
def test_an_image_size_that_a_network_cannot_take_is_one_line(name: str, size: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        create_model(name, 3, size)
    assert "\n" not in str(refused.value)


def test_an_argument_that_a_network_does_not_have_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"cannot be created for 64 px: .*widen"):
        create_model("timm:test_resnet", 3, 64, widen=3)


def test_creating_a_network_follows_from_torchs_seed_and_leaves_it_in_training_mode() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        model = create_model("timm:test_efficientnet", 3, 32)
        states.append(model.state_dict())
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert all(int(tensor) == 0 for name, tensor in states[0].items() if name.endswith("num_batches_tracked"))


def test_names_are_listed_by_pattern() -> None:
    assert "timm:tf_efficientnet_lite0" in list_timm("timm:tf_efficientnet_lite*")
    assert list_timm("timm:efficientnet_lite0") == list_timm("efficientnet_lite0")

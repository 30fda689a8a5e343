"""Training that begins with the weights of a bundle, without Ray."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from cifar_ray.config import OptimizerConfig, StartConfig, TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.data.labels import regroup
from cifar_ray.errors import BundleError, ConfigError
from cifar_ray.models import count_parameters, create_model, list_models
from cifar_ray.models.stages import head_name, stages
from cifar_ray.store import Architecture, Bundle, Manifest
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.optimizers import create_optimizers, scale_rates
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.weights import initial_network
from cifar_ray.training.weights.initial_network import create_from, freeze, rate_factors

CPU = torch.device("cpu")
GROUPS = {"striped": ("horizontal", "vertical"), "plain": ("plain",)}
STAGES = {
    "airnet": ["whitening", "groups.0", "groups.1", "groups.2", "head"],
    "small_cnn": ["convolutions.0", "convolutions.1", "convolutions.2", "head"],
    "airnet96": ["whitening", "groups.0", "groups.1", "groups.2", "head"],
    "cnn3": ["blocks.0", "blocks.1", "blocks.2", "head"],
    "cnn6": ["blocks.0", "blocks.1", "blocks.2", "head"],
    "vgg3": ["blocks.0", "blocks.1", "blocks.2", "head"],
    "resnet9": [*(f"blocks.{number}" for number in range(6)), "head"],
    "wide_resnet28_10": ["stem", *(f"blocks.{number}" for number in range(12)), "head"],
    "resnet50": [
        "conv1",
        *(f"layer{layer}.{block}" for layer, depth in enumerate((3, 4, 6, 3), start=1) for block in range(depth)),
        "fc",
    ],
    "resnet18": ["conv1", *(f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)), "fc"],
}


def make_parent(architecture: str, **arguments: object) -> Bundle:
    arguments = {"num_classes": 3, "image_size": 16} | arguments
    torch.manual_seed(1)
    weights = create_model(architecture, **arguments).state_dict()
    manifest = Manifest(
        architecture=Architecture(name=architecture, arguments=arguments),
        class_names=("horizontal", "vertical", "plain"),
        image_size_px=16,
        channel_mean=(0.4, 0.5, 0.6),
        channel_std=(0.2, 0.25, 0.3),
        resize_policy="pad",
        dataset_name="stripes",
        dataset_fingerprint="d" * 64,
        created_at=datetime(2025, 1, 2, tzinfo=UTC),
    )
    return Bundle(manifest, weights, "stripes", 1)


def make_trainer(parent: Bundle, splits: DatasetSplits, **start: object) -> Trainer:
    """With an epoch of one step."""
    name = parent.manifest.architecture.name
    few = DatasetSplits(splits.name, splits.train.subset(np.arange(24)), None, None)
    values = {"model": name, "batch_size": 24, "precision": "fp32", "start": {"model": "stripes@1"} | start}
    optimizer = {"name": "muon"} if name.startswith("airnet") else {"name": "sgd", "lr": 0.1}
    return Trainer(parse_config(TrainConfig, values | {"optimizer": optimizer, "val_fraction": 0}), few, CPU, Shard(), parent)


def test_every_architecture_has_its_stages_here() -> None:
    assert sorted(STAGES) == list_models()


@pytest.mark.parametrize("architecture", STAGES)
def test_a_network_is_cut_into_stages_that_hold_every_weight_once(architecture: str) -> None:
    with torch.device("meta"):
        model = create_model(architecture, num_classes=3, image_size=32)
    assert [stage.name for stage in stages(model)] == STAGES[architecture]
    inside = [id(parameter) for stage in stages(model) for parameter in stage.parameters()]
    assert sorted(inside) == sorted(map(id, model.parameters()))
    assert head_name(model) == STAGES[architecture][-1]


@pytest.mark.parametrize("architecture", sorted({*STAGES} - {"resnet50"}))  # built as resnet18 is, and seconds slower
@pytest.mark.parametrize("how", ["none", "backbone", "2"])
def test_exactly_the_parameters_counted_as_trained_change(
    few_stripes: DatasetSplits, architecture: str, how: str, narrow: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial_network, "NORM_IMAGES", 1)  # statistics of a parent without training would hide small changes
    trainer = make_trainer(make_parent(architecture, **narrow.get(architecture, {})), few_stripes, freeze=how)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for epoch in range(2):  # in the first step no gradient passes the norms at zero of resnet18's blocks
        trainer.train_epoch(epoch, lambda *_: None)
    parameters = dict(trainer.model.named_parameters())
    changed = [name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert count_parameters(trainer.model) == sum(parameters[name].numel() for name in changed if name in parameters)
    frozen = STAGES[architecture][: {"none": 0, "backbone": -1, "2": 2}[how]]
    assert not [name for name in changed if name.startswith(tuple(f"{stage}." for stage in frozen))], "batch-norm statistics included"
    assert any(name.startswith(STAGES[architecture][-1]) for name in changed)


@pytest.mark.parametrize(("images", "keeps"), [(63, True), (64, False)])
def test_small_batches_keep_the_batch_norm_statistics_of_the_parent(stripes: DatasetSplits, images: int, keeps: bool) -> None:
    parent = make_parent("resnet9", widths=(8, 16, 16, 24))
    few = DatasetSplits(stripes.name, stripes.train.subset(np.arange(64)), None, None)
    values = {"model": "resnet9", "batch_size": images, "micro_batch_size": 64, "precision": "fp32", "start": {"model": "stripes@1"}}
    trainer = Trainer(
        parse_config(TrainConfig, values | {"optimizer": {"name": "sgd", "lr": 0.1}, "val_fraction": 0}), few, CPU, Shard(), parent
    )
    trainer.train_epoch(0, lambda *_: None)
    after = trainer.model.state_dict()
    statistics = [name for name in after if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(after[name], parent.weights[name]) == keeps for name in statistics)
    assert not torch.equal(after["head.weight"], parent.weights["head.weight"])


@pytest.mark.parametrize("how", ["4", "99"])
def test_freezing_everything_is_refused(how: str) -> None:
    with pytest.raises(ConfigError, match=f"freeze: {how} freezes all stages; freeze at most 3 of 4: convolutions"):
        freeze(create_model("small_cnn", 3, 16), StartConfig(model="a@1", freeze=how))


def test_a_group_begins_with_the_mean_of_its_classes_and_an_unknown_class_with_fresh_weights() -> None:
    parent = make_parent("small_cnn", widths=(8, 8, 8))
    model = create_from(parent, ("striped", "plain", "spotted"), 16, GROUPS)
    rows = model.head.weight
    torch.testing.assert_close(rows[0], parent.weights["head.weight"][:2].mean(0))
    assert torch.equal(rows[1], parent.weights["head.weight"][2])
    assert not any(torch.equal(rows[2], row) for row in parent.weights["head.weight"])
    assert torch.equal(model.convolutions[0].weight, parent.weights["convolutions.0.weight"])


def test_inputs_are_normalised_as_the_parent_was_taught(stripes: DatasetSplits) -> None:
    assert make_trainer(make_parent("small_cnn"), stripes).normalization.mean == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("groups", [("a=x",), ("a=x", "a=y"), ("a=x", "b=x"), ("a=", "b=y"), ("a", "b=y")])
def test_groups_that_make_no_choice_are_refused(groups: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^groups: "):
        parse_config(TrainConfig, {"groups": groups})


@pytest.mark.parametrize("name", ["muon", "sgd", "adamw"])
def test_each_stage_learns_at_its_share_of_the_rate_above(name: str) -> None:
    model = create_model("airnet", num_classes=3, image_size=16)
    optimizers = create_optimizers(model, OptimizerConfig(name=name), batch_size=10)
    before = {id(p): group["lr"] for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    scale_rates(optimizers, rate_factors(model, 0.5))
    after = {id(p): group["lr"] for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    assert set(after) == set(before)
    for depth, stage in enumerate(reversed(stages(model))):
        for parameter in (p for p in stage.parameters() if p.requires_grad):
            assert after[id(parameter)] == pytest.approx(before[id(parameter)] * 0.5**depth)


def test_an_ensemble_and_damaged_weights_are_refused_in_one_line() -> None:
    parent = make_parent("small_cnn")
    wrong = Bundle(parent.manifest, {**parent.weights, "convolutions.0.bias": torch.zeros(5)}, "stripes", 1)
    with pytest.raises(BundleError, match="stripes@1: the weights do not match"):
        create_from(wrong, ("a", "b"), 16, {})
    several = Bundle(parent.manifest.model_copy(update={"architecture": Architecture(name="ensemble")}), {}, "both", 1)
    with pytest.raises(ConfigError, match="both@1 is an ensemble"):
        create_from(several, ("a", "b"), 16, {})


def test_the_result_says_which_network_it_is_and_whose_weights_it_began_with(stripes: DatasetSplits) -> None:
    parent = make_parent("small_cnn", widths=(8, 8, 8))
    values = {"model": "small_cnn", "batch_size": 60, "epochs": 1, "groups": ("striped=horizontal,vertical", "plain=plain")}
    config = parse_config(TrainConfig, values | {"start": {"model": "stripes@1"}, "optimizer": {"name": "sgd", "lr": 0.01}})
    splits = regroup(stripes, GROUPS)
    result = fit(config, splits, device=CPU, shard=Shard(), on_step=lambda *_: None, on_epoch=lambda *_: None, parent=parent)
    assert result.architecture == Architecture(name="small_cnn", arguments={"num_classes": 2, "image_size": 16, "widths": (8, 8, 8)})
    assert result.parent_weights_sha256 == parent.manifest.weights_sha256
    assert result.test_confusion is not None
    assert sum(map(sum, result.test_confusion)) == len(stripes.test)

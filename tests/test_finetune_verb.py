"""`python -m cifar_ray.finetune`, as a user runs it."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_ray import __main__ as console
from cifar_ray.cli import training_flags
from cifar_ray.config import StartConfig, TrainConfig, to_yaml
from cifar_ray.data import load_splits
from cifar_ray.errors import ConfigError
from cifar_ray.models import create_model
from cifar_ray.recipes import digits
from cifar_ray.store import Architecture, Bundle, Manifest, ModelStore
from cifar_ray.training.finetuning import compare_on_reviews, warn_of_overlap
from tests.data.test_reviewed import label

EVEN_ODD = ["--groups", "even=0,2,4,6,8", "odd=1,3,5,7,9"]
Shown = pytest.CaptureFixture[str]


def parse(argv: list[str]) -> tuple[training_flags.FinetuneCommand, Bundle]:
    return training_flags.parse_finetune_command(argv, "finetune")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """`digits`, as training would have left it, though with the weights it began with; and `foreign`, imported."""
    arguments = {"num_classes": 10, "image_size": 32}
    torch.manual_seed(0)
    weights = create_model("small_cnn", **arguments).state_dict()
    manifest = Manifest(
        architecture=Architecture(name="small_cnn", arguments=arguments),
        class_names=tuple("0123456789"),
        image_size_px=32,
        channel_mean=(0.3, 0.3, 0.3),
        channel_std=(0.35, 0.35, 0.35),
        resize_policy="pad",
        dataset_name="digits",
        dataset_fingerprint="d" * 64,
        train_config=digits().model_copy(update={"storage": "/elsewhere", "name": "run", "seed": 3, "patience": 2}).model_dump(mode="json"),
        created_at=datetime(2025, 1, 2, tzinfo=UTC),
    )
    store = ModelStore(str(tmp_path))
    store.save("digits", manifest, weights)
    store.save("foreign", manifest.model_copy(update={"train_config": {"imported_from": "a.pth"}}), weights)
    return store


def test_the_parents_settings_hold_at_a_tenth_of_its_rate_and_flags_change_them(store: ModelStore) -> None:
    command, parent = parse(["digits", "--storage", store.storage])
    assert parent.reference == "digits@1"
    assert (command.dataset, command.seed, command.storage, command.image_size) == ("digits", 3, store.storage, 32)
    other_seed, _ = parse(["digits", "--storage", store.storage, "--seed", "9"])
    assert (other_seed.seed, other_seed.seed_of_splits) == (9, 3), "what the parent has learnt does not judge its child"
    assert (command.optimizer.lr, command.epochs, command.patience, command.name) == (pytest.approx(3e-4), 3, None, None)
    assert (command.start.model, command.start.freeze, command.save_as) == ("digits@1", "none", "digits")
    command, _ = parse(
        ["digits", "--storage", store.storage, "--rate-factor", "0.5", "--epochs", "7", "--freeze", "2", "--stage-decay", "0.3", *EVEN_ODD]
    )
    assert (command.optimizer.lr, command.epochs, command.save_as) == (pytest.approx(1.5e-3), 7, "digits-even-odd")
    assert (command.start.freeze, command.start.stage_decay) == ("2", 0.3)
    assert command.reviews_until is None
    assert parse(["digits", "--storage", store.storage, "--with-reviews"])[0].reviews_until, "people label while it trains"
    with pytest.raises(ConfigError, match="--reviews-until: has no effect without --with-reviews"):
        parse(["digits", "--storage", store.storage, "--reviews-until", "2025-11-29"])


def test_train_repeats_a_fine_tuning_from_its_config(store: ModelStore, tmp_path: Path) -> None:
    command, _ = parse(["digits", "--storage", store.storage, "--freeze", "backbone", *EVEN_ODD])
    config = TrainConfig.model_validate(command.model_dump(include=set(TrainConfig.model_fields)))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = training_flags.parse_train_command(["--config", str(tmp_path / "config.yaml")], "train")
    assert TrainConfig.model_validate(again.model_dump(include=set(TrainConfig.model_fields))) == config
    assert config.start == StartConfig(model="digits@1", freeze="backbone")


def test_a_folder_of_pictures_needs_no_dataset_flag(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    command, _ = parse(["foreign@1", "--storage", store.storage, "--data-dir", str(tmp_path)])
    assert (command.dataset, command.data_dir) == ("folder", str(tmp_path))


def test_other_images_give_a_model_of_their_own_name(store: ModelStore, tmp_path: Path) -> None:
    command, _ = parse(["foreign@1", "--storage", store.storage, "--dataset", "folder", "--data-dir", str(tmp_path)])
    assert (command.dataset, command.save_as, command.start.model) == ("folder", None, "foreign@1")


def test_models_of_different_classes_are_not_compared_on_reviewed_pictures(store: ModelStore) -> None:
    label(Path(store.storage), 10, "even")
    parent = store.load("digits")
    child = dataclasses.replace(parent, manifest=parent.manifest.model_copy(update={"class_names": ("even", "odd")}))
    assert compare_on_reviews((parent, child), store.storage) == ""


def test_reviewed_pictures_that_join_the_same_data_do_not_make_it_another_split(store: ModelStore) -> None:
    label(Path(store.storage), 10)
    plain, reviewed, other = (
        load_splits(TrainConfig(dataset="digits", image_size=8, storage=store.storage, with_reviews=added, split_seed=seed))
        for added, seed in ((False, 0), (True, 0), (True, 1))
    )
    stored = store.load("digits")
    parent = store.save("same", stored.manifest.model_copy(update={"dataset_fingerprint": plain.fingerprint}), stored.weights)
    assert len(reviewed.train) > len(plain.train)
    assert warn_of_overlap(parent, TrainConfig(), reviewed) is None
    of_release_1_0 = stored.manifest.model_copy(
        update={
            "dataset_fingerprint": reviewed.fingerprint,  # with the reviews of that day
            "test_fingerprint": plain.test_fingerprint,
            "train_config": {"with_reviews": True},
        }
    )
    label(Path(store.storage), 10, "7")
    assert warn_of_overlap(store.save("old", of_release_1_0, stored.weights), TrainConfig(), reviewed) is None
    assert "may have been trained on" in (warn_of_overlap(parent, TrainConfig(), other) or "")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "the first argument must be the model"),
        (["--epochs", "2"], "the first argument must be the model"),
        (["fish"], "model fish not found in .* Available: digits, foreign"),
        (["foreign"], "does not name its training data; pass --dataset"),
        (["digits", "--freeze", "all"], "freeze: "),
        (["digits", "--groups", "even=0"], "groups: expected at least two"),
        (["digits", "--groups", "even=0,2", "odd=1,zwölf"], "class 'zwölf' of .* not found"),
        (["digits", "--freeze", "4"], "freeze: 4 freezes all stages"),
        (["digits", "--rate-factor", "much"], "rate_factor: "),
        (["digits", "--model", "airnet"], "--model"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(store: ModelStore, capsys: Shown, argv: list[str], reason: str) -> None:
    assert console.main(["finetune", *argv, *(["--storage", store.storage] if argv else [])]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(reason, lines[0].replace("--freeze", "freeze"))


def tracked(folder: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Steps of each curve, and names of pictures, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {name: [event.step for event in events.Scalars(name)] for name in events.Tags()["scalars"]}, events.Tags()["images"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_groups_of_a_model_become_a_model_beside_it_that_names_its_parent(store: ModelStore, capsys: Shown) -> None:
    options = ["--freeze", "2", "--cluster", "local", "--epochs", "3", "--rate-factor", "2", "--name", "run", "--track", "tensorboard"]
    options += ["--storage", store.storage]
    assert console.main(["finetune", "digits", *EVEN_ODD, *options]) == 0
    parent, child = store.load("digits"), store.load("digits-even-odd")
    assert (child.manifest.parent, child.manifest.parent_weights_sha256) == ("digits@1", parent.manifest.weights_sha256)
    assert child.manifest.class_names == ("even", "odd")
    assert child.manifest.channel_mean == parent.manifest.channel_mean
    assert child.manifest.metrics["test_accuracy"] > 0.75
    assert child.manifest.abstain_threshold is not None
    assert child.manifest.temperature != parent.manifest.temperature
    changed = {name.rpartition(".")[0] for name, weights in child.weights.items() if not torch.equal(weights, parent.weights[name])}
    assert changed == {"convolutions.2", "head"}
    trained = sum(tensor.numel() for name, tensor in child.weights.items() if name.startswith(("convolutions.2", "head")))
    shown = capsys.readouterr()
    assert (
        f"trains {trained:,} of {sum(tensor.numel() for tensor in child.weights.values()):,} parameters: convolutions.2, head" in shown.err
    )
    assert "parent digits@1 is unchanged" in shown.out
    assert store.versions("digits") == [1]
    curves, pictures = tracked(Path(store.storage) / "tensorboard" / "run")
    assert curves["val_accuracy"] == curves["val_accuracy/odd"] == [1, 2, 3], "once, though there were two workers"
    assert set(pictures) == {"confusion", "curves"}

import dataclasses
import math

import numpy as np
import pytest
import torch

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.loader import EvaluationLoader, Step
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import ConfigError, DataError, TrainingError
from cifar_ray.metrics.trust import Trust
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.loop.validation import gather_outputs, views
from cifar_ray.training.records.results import EpochReport, FitResult, Weights

CPU = torch.device("cpu")
SMALL = {
    "model": "small_cnn",
    "epochs": 3,
    "batch_size": 24,
    "precision": "fp32",
    "label_smoothing": 0.0,
    "test_time_augmentation": "none",
    "optimizer": {"name": "adamw", "lr": 0.01},
    "augmentation": {"flip": "none", "translate_px": 1},
}


def config(**changes: object) -> TrainConfig:
    return parse_config(TrainConfig, SMALL | changes)


def run(splits: DatasetSplits, **changes: object) -> tuple[FitResult, list[EpochReport], list[Weights]]:
    reports, weights = [], []

    def on_epoch(report: EpochReport, state: Weights) -> None:
        reports.append(report)
        weights.append({name: tensor.clone() for name, tensor in state.items()})

    result = fit(config(**changes), splits, device=CPU, shard=Shard(), on_step=lambda *_: None, on_epoch=on_epoch)
    return result, reports, weights


ADAMW = {"name": "adamw", "lr": 0.01}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 1.0}


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [
        ("fp32", ADAMW),
        ("bf16", ADAMW),
        pytest.param("fp16", ADAMW, marks=pytest.mark.slow),  # CPUs only imitate it, in a quarter of a minute
        ("fp32", SGD),
        ("bf16", SGD),
        pytest.param("fp16", SGD, marks=pytest.mark.slow),
    ],
)
def test_training_learns_what_can_be_learned(stripes: DatasetSplits, precision: str, optimizer: dict) -> None:
    result, reports, _ = run(stripes, precision=precision, optimizer=optimizer, epochs=6)
    assert result.metrics["test_accuracy"] > 0.9
    assert reports[-1].train_loss < reports[0].train_loss
    assert result.precision == precision


def test_airnet_with_muon_learns(stripes: DatasetSplits) -> None:
    airbench = {
        "model": "airnet",
        "optimizer": {},
        "label_smoothing": 0.2,
        "epochs": 4,
        "stem_epochs": 2,
        "test_time_augmentation": "mirror_shift",
        "augmentation": {"flip": "alternating", "translate_px": 2},
    }
    result, _, _ = run(stripes, **airbench)
    assert result.metrics["test_accuracy"] > 0.9
    assert result.metrics["test_accuracy_tta"] > 0.9


def test_training_on_mixed_images_learns(stripes: DatasetSplits) -> None:
    changes = {"flip": "none", "translate_px": 1, "noise_std": 0.05, "mixup": 0.4, "cutmix": 1.0}
    result, reports, _ = run(stripes, augmentation=changes, label_smoothing=0.1, epochs=6)
    assert result.metrics["test_accuracy"] > 0.9
    assert reports[-1].train_accuracy > reports[0].train_accuracy


def test_mixed_labels_weigh_as_the_loss_of_each_class_and_count_as_the_larger_share(stripes: DatasetSplits) -> None:
    trainer = Trainer(config(label_smoothing=0.2), stripes, CPU, Shard())
    inputs = trainer.normalization(torch.from_numpy(stripes.train.images[:6]))
    shares = torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.5, 0.5]]).repeat(2, 1)
    shares = torch.cat((shares, torch.zeros(6, stripes.train.num_classes - 2)), 1)
    trainer.model.train()
    with torch.no_grad():
        logits = trainer.model(inputs)
    smooth = 0.8 * shares + 0.2 / shares.shape[1]
    loss, right = trainer.train_step(Step(6, 1, iter([(inputs, shares)]))).tolist()
    assert loss == pytest.approx(-(smooth * logits.log_softmax(1)).sum().item(), rel=1e-5)
    assert right == (logits.argmax(1) == shares.argmax(1)).sum()


def test_the_same_seed_gives_the_same_weights_bit_for_bit(stripes: DatasetSplits) -> None:
    first, second, other = (run(stripes, seed=seed, epochs=2)[2][-1] for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_pieces_of_a_batch_add_up_to_the_batch(stripes: DatasetSplits) -> None:
    plain = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    whole, pieces = (run(stripes, micro_batch_size=size, epochs=1, optimizer=plain)[2][-1] for size in (None, 7))
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name], atol=1e-5, rtol=1e-4)


def test_the_best_epoch_by_validation_is_the_one_tested(stripes: DatasetSplits) -> None:
    result, reports, weights = run(stripes, epochs=5)
    best = max(reports, key=lambda report: (report.val_accuracy, -report.epoch))
    assert result.best_epoch == best.epoch
    assert result.metrics["val_accuracy"] == best.val_accuracy
    trainer = Trainer(config(), stripes, CPU, Shard())
    trainer.model.load_state_dict(weights[best.epoch - 1])
    assert trainer.evaluate(stripes.test).accuracy == result.metrics["test_accuracy"]


def test_without_validation_all_is_trained_on_and_the_last_weights_are_kept(stripes: DatasetSplits) -> None:
    result, reports, _ = run(dataclasses.replace(stripes, val=None), val_fraction=0)
    assert result.best_epoch == 3
    assert [report.val_accuracy for report in reports] == [None] * 3
    assert set(result.metrics) == {"test_accuracy", "test_loss", "test_ece", "test_ece_sd", "test_ece_uncalibrated", "test_abstained"}
    assert result.trust == Trust(temperature=1.0, abstain_threshold=None)
    assert result.metrics["test_ece"] == result.metrics["test_ece_uncalibrated"]
    assert "no validation images" in result.trust.describe(result.metrics)


def test_early_stopping_ends_after_patience_epochs_without_a_better_one(stripes: DatasetSplits) -> None:
    result, reports, _ = run(stripes, epochs=40, patience=2, optimizer={"name": "adamw", "lr": 1e-12})
    assert result.best_epoch == 1
    assert len(reports) == 3


def test_evaluation_counts_every_image_once_and_agrees_with_a_plain_loop(stripes: DatasetSplits) -> None:
    trainer = Trainer(config(micro_batch_size=7), stripes, CPU, Shard())
    found = trainer.evaluate(stripes.test)
    trainer.model.eval()
    with torch.inference_mode():
        logits = trainer.model(trainer.normalization(torch.from_numpy(stripes.test.images)))
    labels = torch.from_numpy(stripes.test.labels)
    assert found.count == len(stripes.test)
    assert found.accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found.confusion.sum(axis=1).tolist() == stripes.test.class_counts().tolist()


@pytest.mark.parametrize("count", [59, 1])
def test_the_parts_of_all_workers_add_up_to_the_logits_of_the_split_in_its_order(stripes: DatasetSplits, count: int) -> None:
    test = stripes.test.subset(np.arange(count))
    trainer = Trainer(config(), stripes, CPU, Shard())
    parts = []
    for shard in (Shard(0, 2), Shard(1, 2)):
        loader = EvaluationLoader(test, batch_size=7, normalization=trainer.normalization, shard=shard, device=CPU)
        parts.append(gather_outputs(trainer.model, loader, trainer.precision, shard.slice(count), count)[0])
    trainer.model.eval()
    with torch.inference_mode():
        expected = trainer.model(trainer.normalization(torch.from_numpy(test.images))).numpy()
    np.testing.assert_allclose(parts[0] + parts[1], expected, atol=1e-5)
    np.testing.assert_allclose(trainer.outputs(test)[0], expected, atol=1e-5)


def test_a_loss_that_is_no_longer_finite_ends_the_run_and_names_the_step(stripes: DatasetSplits) -> None:
    with pytest.raises(TrainingError, match=r"the loss is .* in step . of epoch 1; lower the learning rate"):
        run(stripes, optimizer={"name": "sgd", "lr": 1e12, "momentum": 0.9})


def test_a_batch_larger_than_the_data_is_refused(stripes: DatasetSplits) -> None:
    with pytest.raises(DataError, match="batch_size"):
        run(stripes, batch_size=1000)


@pytest.mark.parametrize("sizes", [{"batch_size": 1}, {"micro_batch_size": 1}])
def test_single_images_that_a_network_cannot_train_on_are_refused_before_the_first_step(
    stripes: DatasetSplits, sizes: dict[str, int]
) -> None:
    small = dataclasses.replace(stripes.train, images=np.ascontiguousarray(stripes.train.images[:, ::2, ::2]))  # 8 px: one value at the end
    few = DatasetSplits("stripes", small.subset(np.arange(4)), None, None)
    settings = config(model="resnet18", val_fraction=0, test_fraction=0, **{"batch_size": 4} | sizes)
    with pytest.raises(ConfigError, match=r"resnet18 cannot train on single images of 8 px, .* pass a larger --batch-size"):
        Trainer(settings, few, CPU, Shard())
    Trainer(settings.model_copy(update={"model": "small_cnn"} | sizes), stripes, CPU, Shard())  # larger maps


def test_batch_norm_forgets_as_much_a_step_however_many_pieces_it_has(stripes: DatasetSplits) -> None:
    whole, pieces = (Trainer(config(model="airnet", micro_batch_size=size), stripes, CPU, Shard()) for size in (24, 6))
    kept = [(1 - trainer.model.groups[0].norm1.momentum) ** trainer.loader.pieces_per_step for trainer in (whole, pieces)]
    assert kept[0] == pytest.approx(0.6)
    assert kept[1] == pytest.approx(0.6)


@pytest.mark.parametrize(("name", "count"), [("none", 1), ("mirror", 2), ("mirror_shift", 6)])
def test_views_are_weighted_to_one(name: str, count: int) -> None:
    images = torch.randn(2, 3, 8, 8)
    found = views(images, name)
    assert len(found) == count
    assert math.isclose(sum(weight for weight, _ in found), 1)
    assert torch.equal(found[0][1], images)

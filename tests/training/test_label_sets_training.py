"""Several labels per picture, from the loss to the figures: binary losses, mixed label sets, and epochs judged by mAP."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.errors import ConfigError
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.losses import LabelSetLoss, positive_weights, training_loss
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.probe.head import assign_folds, fit_head
from cifar_ray.training.records import history
from cifar_ray.training.records.results import EpochReport
from tests.training.test_loop import SMALL as SHORT

CPU = torch.device("cpu")
SMALL = SHORT | {"epochs": 6}
LOGITS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 3
LABELS = (torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) < torch.tensor([0.5, 0.2, 0.05])).to(torch.uint8)
MIXED = torch.rand(40, 3, generator=torch.Generator().manual_seed(2))


def make_stripe_sets(count: int, seed: int = 0) -> ImageDataset:
    """Horizontal stripes, vertical stripes, both or neither, on noise, 16 px."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 2)) < 0.5).astype(np.uint8)
    images = rng.integers(0, 100, (count, 16, 16, 3))
    images[labels[:, 0] == 1, ::4] += 75
    images[labels[:, 1] == 1, :, ::4] += 75
    return ImageDataset(images.astype(np.uint8), labels, ("horizontal", "vertical"))


SPLITS = DatasetSplits("sets", make_stripe_sets(240), make_stripe_sets(80, seed=1), make_stripe_sets(80, seed=2))


def config(**changes: object) -> TrainConfig:
    return parse_config(TrainConfig, SMALL | changes)


def loss(**settings: object) -> LabelSetLoss:
    found = training_loss(config(**settings), LABELS.numpy(), 3, CPU)
    assert isinstance(found, LabelSetLoss)
    return found


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["sets", "mixed"])
def test_the_loss_is_binary_cross_entropy_and_smoothing_moves_targets_towards_a_half(labels: torch.Tensor) -> None:
    expected = F.binary_cross_entropy_with_logits(LOGITS, labels.float(), reduction="sum")
    torch.testing.assert_close(loss()(LOGITS, labels), expected)
    smooth = F.binary_cross_entropy_with_logits(LOGITS, 0.8 * labels.float() + 0.1, reduction="sum")
    torch.testing.assert_close(loss(label_smoothing=0.2)(LOGITS, labels), smooth)


def test_balanced_weights_make_positives_and_negatives_of_a_class_count_the_same() -> None:
    weights = torch.from_numpy(positive_weights(LABELS.numpy())).float()
    counts = LABELS.sum(0)
    torch.testing.assert_close(weights * counts, (40 - counts).float())
    expected = F.binary_cross_entropy_with_logits(LOGITS, LABELS.float(), pos_weight=weights, reduction="sum")
    torch.testing.assert_close(loss(class_weights="balanced")(LOGITS, LABELS), expected)
    assert positive_weights(np.zeros((5, 2), np.uint8)).tolist() == [1, 1]


def test_the_focal_loss_is_that_of_torchvision() -> None:
    from torchvision.ops import sigmoid_focal_loss

    expected = sigmoid_focal_loss(LOGITS, LABELS.float(), alpha=-1, gamma=1.5, reduction="sum")
    torch.testing.assert_close(loss(loss="focal", focal_gamma=1.5)(LOGITS, LABELS), expected, rtol=1e-4, atol=1e-4)


def test_the_asymmetric_loss_is_that_of_the_paper() -> None:
    logits = LOGITS.clone().requires_grad_()
    p, y = torch.sigmoid(LOGITS.double()), LABELS.double()
    shifted = (p - 0.05).clamp_min(0)
    expected = -(y * (1 - p) * p.log() + (1 - y) * shifted**4 * (1 - shifted).log()).sum()
    found = loss(loss="asymmetric")(logits, LABELS)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    found.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    easy = (LABELS == 0) & (torch.sigmoid(LOGITS) < 0.05)
    assert float(logits.grad[easy].abs().max()) < 1e-5, "a negative below the margin does not count"
    certain = loss(loss="asymmetric")(torch.tensor([[100.0, -100.0, 100.0]]), torch.tensor([[0, 1, 1]], dtype=torch.uint8))
    assert torch.isfinite(certain)


@pytest.mark.parametrize(("name", "least"), [("cross_entropy", 0.95), ("asymmetric", 0.85)])
def test_training_learns_label_sets_and_is_judged_by_map(name: str, least: float) -> None:
    reports: list[EpochReport] = []
    result = fit(
        config(loss=name, epochs=8),
        SPLITS,
        device=CPU,
        shard=Shard(),
        on_step=lambda *_: None,
        on_epoch=lambda report, _: reports.append(report),
    )
    metrics = result.metrics
    assert metrics["test_map"] > least
    assert metrics["test_micro_f1"] > least - 0.05
    assert not [key for key in metrics if "accuracy" in key], "an accuracy of label sets would be untrue"
    best = max(reports, key=lambda report: report.val_map or 0)
    assert metrics["val_map"] == pytest.approx(best.val_map)
    assert reports[result.best_epoch - 1].val_map == best.val_map
    assert (best.train_accuracy, best.val_accuracy, best.val_confusion, result.test_predictions) == (None, None, None, None)
    assert result.trust.rules is not None
    assert result.trust.rules.slopes != (1.0, 1.0)
    assert b"val_map" in history.to_csv(reports)


def test_early_stopping_waits_for_map() -> None:
    reports: list[EpochReport] = []
    stuck = config(patience=2, optimizer={"name": "adamw", "lr": 1e-12}, epochs=9)
    fit(stuck, SPLITS, device=CPU, shard=Shard(), on_step=lambda *_: None, on_epoch=lambda report, _: reports.append(report))
    best = max(range(len(reports)), key=lambda epoch: reports[epoch].val_map or 0)
    assert len(reports) == best + 1 + 2 < 9


def test_mixing_pictures_mixes_their_label_sets() -> None:
    mixes = config(augmentation={"flip": "none", "translate_px": 0, "mixup": 1.0, "cutmix": 1.0})
    trainer = Trainer(mixes, SPLITS, CPU, Shard())
    step = next(iter(trainer.loader.epoch(0)))
    labels = torch.cat([labels for _, labels in step.pieces])
    assert labels.dtype == torch.float32
    assert 0 <= labels.min() < labels.max() <= 1
    assert ((labels > 0.01) & (labels < 0.99)).any()
    assert (labels.sum(1) > 1.2).any(), "a set of two labels stays a set of two, not two halves"


def test_without_validation_pictures_labels_are_given_from_a_half_on() -> None:
    result = fit(
        config(epochs=1),
        dataclasses.replace(SPLITS, val=None),
        device=CPU,
        shard=Shard(),
        on_step=lambda *_: None,
        on_epoch=lambda *_: None,
    )
    assert result.trust.rules is not None
    assert result.trust.rules.thresholds == (0.5, 0.5)
    assert "uncalibrated" in result.trust.describe(result.metrics)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_of_a_probe_is_one_logistic_regression_per_label(weighted: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 6)) * np.linspace(0.1, 50, 6) + 7).astype(np.float32)
    labels = (features @ rng.normal(size=(6, 3)) / 60 + rng.normal(size=(300, 3)) > [[0.5, 1, 2]]).astype(np.uint8)
    weights = positive_weights(labels).astype(np.float32) if weighted else None
    fitted = fit_head(features.copy(), labels, 3, assign_folds(labels, np.arange(300), seed=0), of_positives=weights)
    standard = ((features - features.mean(0)) / features.std(0)).astype(np.float64)
    for column in range(3):
        each = np.where(labels[:, column] == 1, 1 if weights is None else weights[column], 1)
        model = LogisticRegression(C=1 / (300 * fitted.strength), tol=1e-8, max_iter=2000).fit(standard, labels[:, column], each)
        found = 1 / (1 + np.exp(-fitted.head.logits(features)[:, column]))
        np.testing.assert_allclose(found, model.predict_proba(standard)[:, 1], atol=2e-3)
    from sklearn.metrics import average_precision_score

    assert fitted.score == pytest.approx(average_precision_score(labels[fitted.rows], fitted.held_out))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"task": "multi-label"}, "the pictures of cifar10 have one label each"),
        ({"task": "multi-label", "dataset": "folder", "data_dir": "x", "sampling": "balanced"}, "sampling balanced needs one label"),
        ({"task": "multi-label", "dataset": "folder", "data_dir": "x", "groups": ("a=b", "c=d")}, "groups need one label"),
        ({"task": "single-label", "loss": "asymmetric"}, "loss asymmetric is for several labels"),
    ],
)
def test_settings_of_the_other_task_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config(**settings)

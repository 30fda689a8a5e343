"""Weights of pictures: from the table into the loss of each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_ray.config import AugmentationConfig, TrainConfig, parse_config
from cifar_ray.data import StreamedSplits, open_splits
from cifar_ray.data.batches.loader import Normalization, TrainLoader
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.statistics import training_weights
from cifar_ray.errors import DataError
from cifar_ray.training.loop.losses import LabelSetLoss, TrainingLoss
from cifar_ray.training.probe.linear_probe import _fit
from cifar_ray.training.probe.tail import TailTrainer

CPU = torch.device("cpu")
LABELS = np.arange(12) % 2
WEIGHTS = np.arange(12, dtype=np.float32)


def dataset(**fields: Any) -> ImageDataset:
    """Twelve images of shade 0, 20, 40, …"""
    images = np.arange(0, 240, 20, np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    return ImageDataset(images, LABELS, ("a", "b"), weights=WEIGHTS, **fields)


def config(**settings: Any) -> TrainConfig:
    return parse_config(TrainConfig, {"label_smoothing": 0.1} | settings)


@pytest.mark.parametrize("stream", ["never", "always"])
def test_each_picture_keeps_its_weight_through_splits_and_cache(tmp_path: Path, stream: str) -> None:
    for row in range(12):
        Image.fromarray(dataset().images[row]).save(tmp_path / f"{row}.png")
    rows = [f"{row}.png,{'ab'[LABELS[row]]},{WEIGHTS[row]}" for row in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,weight", *rows, ""]))
    job = config(dataset="folder", data_dir=str(tmp_path), image_size=8, stream=stream, val_fraction=0.2, test_fraction=0.2)
    for _ in ("built", "cached"):
        splits = open_splits(job)
        train = splits.train
        images = train.pictures.read(np.arange(len(train))) if isinstance(splits, StreamedSplits) else splits.train.images
        assert train.weights is not None
        assert (train.weights == images[:, 0, 0, 0] / 20).all()
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,weight", *rows[:-1], "11.png,b,5", ""]))
    assert open_splits(job).fingerprint != splits.fingerprint


def test_the_mean_weight_is_one_and_not_all_may_be_zero() -> None:
    weights = training_weights(dataset().weights)
    assert weights is not None
    assert weights.mean() == pytest.approx(1)
    with pytest.raises(DataError, match="the weights of all training images are 0"):
        training_weights(dataset().subset(np.array([0])).weights)


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("settings", [{}, {"loss": "focal"}, {"class_weights": "balanced"}])
def test_the_loss_of_a_batch_is_the_weighted_sum_over_its_images(settings: dict[str, Any], mixup: float) -> None:
    loader = TrainLoader(
        dataset(),
        batch_size=6,
        micro_batch_size=3,
        augmentation=AugmentationConfig(flip="none", translate_px=0, mixup=mixup),
        normalization=Normalization((0.0,) * 3, (1.0,) * 3, torch.float32),
        shard=Shard(),
        seed=0,
        device=CPU,
    )
    loss = TrainingLoss(config(**settings), LABELS, 2, CPU)
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for step in loader.epoch(0):
        for inputs, labels in step.pieces:
            classes, weights = labels[:, :2], labels[:, 2]
            expected = sum(weight * loss(logits[row : row + 1], classes[row : row + 1]) for row, weight in enumerate(weights))
            torch.testing.assert_close(loss(logits, labels), expected)
            assert loss.hits(logits, labels) == (logits.argmax(1) == classes.argmax(1)).sum()
            # the shade of an image, also of a mixed one, says its weight
            torch.testing.assert_close(inputs[:, 0, 0, 0] * 255 / 20 / float(WEIGHTS.mean()), weights)


@pytest.mark.parametrize("settings", [{}, {"loss": "focal"}, {"loss": "asymmetric"}, {"class_weights": "balanced"}])
def test_weights_multiply_the_loss_of_pictures_with_several_labels(settings: dict[str, str]) -> None:
    marks = np.random.default_rng(0).integers(0, 2, (12, 3)).astype(np.uint8)
    loss = LabelSetLoss(config(**settings), marks, CPU)
    logits, weights = torch.randn(12, 3), torch.from_numpy(WEIGHTS)
    expected = sum(weight * loss(logits[row : row + 1], torch.from_numpy(marks[row : row + 1])) for row, weight in enumerate(weights))
    torch.testing.assert_close(loss(logits, torch.cat((torch.from_numpy(marks).float(), weights[:, None]), 1)), expected)


def test_the_head_ignores_pictures_of_weight_zero() -> None:
    features = np.tile([[-1.0], [1.0]], (50, 1)).astype(np.float32) + np.random.default_rng(0).normal(0, 0.1, (100, 1)).astype(np.float32)
    labels = np.tile([0, 1], 50)
    wrong = np.arange(100) < 70
    images, weights = np.zeros((100, 1, 1, 3), np.uint8), np.where(wrong, 0.0, 1.0).astype(np.float32)
    train = ImageDataset(images, np.where(wrong, 1 - labels, labels), ("a", "b"), weights=weights)
    head = _fit(config(), train, features.copy(), lambda *_: lambda _: None).head
    assert (head.logits(features).argmax(1) == labels).all()


def test_batches_of_the_last_stages_carry_the_weights() -> None:
    trainer = TailTrainer.__new__(TailTrainer)
    trainer.config, trainer.train, trainer.batch_size, trainer.steps_per_epoch = config(augmentation={"mixup": 0.0}), dataset(), 4, 3
    trainer._views = [WEIGHTS[:, None, None, None].astype(np.float16)]
    trainer._weights = torch.from_numpy(WEIGHTS)
    for inputs, labels in trainer._batches(np.random.default_rng(0)):
        assert (labels[:, 2] == inputs[:, 0, 0, 0]).all()
        assert (labels[:, 1] == inputs[:, 0, 0, 0] % 2).all()

"""Fine-tuning of the last stages on cached activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cifar_ray.data.dataset import ImageDataset
from cifar_ray.models import create_model
from cifar_ray.models.stages import head_name
from cifar_ray.recipes import get_recipe
from cifar_ray.training.probe.tail import TailTrainer, split


def test_figures_of_fewer_pictures_than_a_batch_are_means_of_these_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifar_ray.training.probe.tail.choose", lambda engine, _, **__: (engine, ""))
    network = create_model("timm:tf_efficientnet_lite0", num_classes=2, image_size=32)
    head = network.get_submodule(head_name(network))
    with torch.no_grad():
        head.bias.copy_(torch.tensor([50.0, -50.0]))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    train = ImageDataset(images, np.zeros(5, np.int64), ("a", "b"))
    recipe = get_recipe("photos")
    augmentation = recipe.augmentation.model_copy(update={"mixup": 0.0})
    config = recipe.model_copy(update={"batch_size": 32, "label_smoothing": 0.0, "augmentation": augmentation})
    tail = split(network, 32)
    assert tail is not None
    trainer = TailTrainer(tail, config, train, (0.5,) * 3, (0.5,) * 3)
    trainer.prepare(lambda *_: lambda _: None)
    assert trainer.steps_per_epoch == 1
    loss, accuracy = trainer.run_epoch(1, lambda *_: None)
    assert (round(loss, 3), accuracy) == (0.0, 1.0)

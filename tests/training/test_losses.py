"""The loss of uneven classes: weights, focal loss, and what is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.errors import ConfigError
from cifar_ray.training.loop.losses import TrainingLoss, balanced_weights

CPU = torch.device("cpu")
RARE = np.repeat(np.arange(3), (90, 9, 1))
LOGITS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 2
LABELS = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
MIXED = torch.rand(40, 3, generator=torch.Generator().manual_seed(2)).softmax(1)


def loss(**settings: object) -> TrainingLoss:
    return TrainingLoss(parse_config(TrainConfig, {"label_smoothing": 0.0} | settings), RARE, 3, CPU)


def test_weights_are_those_of_scikit_learn_and_one_on_average_over_the_images() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    weights = balanced_weights(RARE, 3)
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=RARE))
    assert weights[RARE].mean() == pytest.approx(1)
    with_empty = balanced_weights(RARE, 5)
    np.testing.assert_allclose(with_empty, [*weights, 0, 0])


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["hard", "mixed"])
def test_without_the_new_settings_the_loss_is_bit_for_bit_cross_entropy(labels: torch.Tensor) -> None:
    expected = F.cross_entropy(LOGITS, labels, label_smoothing=0.2, reduction="sum")
    assert torch.equal(loss(label_smoothing=0.2)(LOGITS, labels), expected)
    assert torch.equal(loss(label_smoothing=0.2, loss="focal", focal_gamma=0)(LOGITS, labels), expected)


@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["hard", "mixed"])
def test_class_weights_are_those_of_torch(labels: torch.Tensor) -> None:
    weights = torch.from_numpy(balanced_weights(RARE, 3)).float()
    expected = F.cross_entropy(LOGITS, labels, weight=weights, reduction="sum")
    torch.testing.assert_close(loss(class_weights="balanced")(LOGITS, labels), expected)


def test_the_focal_loss_is_that_of_torchvision_for_two_classes() -> None:
    from torchvision.ops import sigmoid_focal_loss

    labels = LABELS % 2
    margins = LOGITS[:, 1] - LOGITS[:, 0]  # the softmax of two logits is the sigmoid of their difference
    made = TrainingLoss(parse_config(TrainConfig, {"label_smoothing": 0.0, "loss": "focal", "focal_gamma": 1.5}), RARE % 2, 2, CPU)
    expected = sigmoid_focal_loss(margins, labels.float(), alpha=-1, gamma=1.5, reduction="sum")
    torch.testing.assert_close(made(LOGITS[:, :2], labels), expected)


@pytest.mark.parametrize("settings", [{"class_weights": "balanced"}, {"loss": "focal"}, {"class_weights": "balanced", "loss": "focal"}])
def test_mixed_labels_are_the_mean_of_the_losses_of_both_classes(settings: dict[str, object]) -> None:
    made = loss(label_smoothing=0.1, **settings)
    first, second = LABELS, (LABELS + 1) % 3
    blended = 0.3 * F.one_hot(first, 3).float() + 0.7 * F.one_hot(second, 3).float()
    torch.testing.assert_close(made(LOGITS, blended), 0.3 * made(LOGITS, first) + 0.7 * made(LOGITS, second))


def test_with_smoothing_a_sure_and_right_prediction_of_a_frequent_class_is_still_best() -> None:
    """With torch's own weights the smoothing would pull a frequent class to the rare one: it has 90 times the weight."""
    made = loss(label_smoothing=0.2, class_weights="balanced")
    logits = torch.zeros(1, 3, requires_grad=True)
    for _ in range(500):
        (slope,) = torch.autograd.grad(made(logits, torch.tensor([0])), logits)
        logits = (logits - slope).detach().requires_grad_()
    torch.testing.assert_close(logits.softmax(1), torch.tensor([[0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_the_slope_of_the_focal_loss_is_finite_for_sure_predictions(gamma: float) -> None:
    logits = torch.tensor([[60.0, 0, 0], [0, 60.0, 0]], requires_grad=True)
    loss(loss="focal", focal_gamma=gamma)(logits, torch.tensor([0, 0])).backward()
    assert torch.isfinite(logits.grad).all()


def test_weights_and_sampling_together_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="class_weights and sampling are both balanced") as refused:
        loss(class_weights="balanced", sampling="balanced")
    assert "\n" not in str(refused.value)

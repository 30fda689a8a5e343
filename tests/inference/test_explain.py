from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from cifar_ray.config import EngineName
from cifar_ray.errors import ConfigError
from cifar_ray.inference.explain import explain, grad_cam
from cifar_ray.inference.overlay import overlay
from cifar_ray.inference.predictor import Predictor
from cifar_ray.models import list_models
from cifar_ray.models.ensemble import Ensemble
from cifar_ray.store import Bundle

MakeBundle = Callable[..., Bundle]


class RedOrBlue(nn.Module):
    """Class 0 is the amount of red, class 1 that of blue: the truth about each heatmap is known."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.colours.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1]]).view(2, 3, 1, 1))
            self.head.weight.copy_(torch.eye(2))
        self.requires_grad_(False)  # as a bundle for serving may be

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.colours(images)).mean((2, 3)))
        return logits


@pytest.fixture
def red_left_blue_right() -> npt.NDArray[np.uint8]:
    image = np.full((1, 16, 16, 3), 128, np.uint8)
    image[0, 4:8, 2:6] = (255, 128, 128)
    image[0, 8:12, 10:14] = (128, 128, 255)
    return image


def test_the_heat_lies_where_the_class_is_seen(make_bundle: MakeBundle, red_left_blue_right: npt.NDArray[np.uint8]) -> None:
    manifest = make_bundle(channel_mean=(0.5, 0.5, 0.5)).manifest
    heat = grad_cam(RedOrBlue(), manifest, red_left_blue_right.repeat(2, axis=0), [0, 1])
    assert heat.dtype == np.float32
    assert heat.shape == (2, 16, 16)
    red, blue = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    red[4:8, 2:6], blue[8:12, 10:14] = True, True
    assert heat[0][red].min() == heat[1][blue].min() == 1
    assert max(heat[0][~red].max(), heat[1][~blue].max()) < 0.02


def test_an_ensemble_shows_what_all_members_saw(make_bundle: MakeBundle, red_left_blue_right: npt.NDArray[np.uint8]) -> None:
    ensemble = Ensemble([RedOrBlue(), RedOrBlue()], torch.tensor([[1.0, 1, 1], [0, 0, 0]]).repeat(2, 1, 1), (1.0, 1.0))
    heat = grad_cam(ensemble, make_bundle(channel_mean=(0.5, 0.5, 0.5)).manifest, red_left_blue_right, [0])
    assert np.unravel_index(heat[0].argmax(), (16, 16)) == (4, 2)
    assert heat[0, 8:12, 10:14].max() < 0.02


@pytest.mark.parametrize("architecture", list_models())
def test_every_architecture_can_be_explained_and_is_left_as_it_was(
    make_bundle: MakeBundle, images: npt.NDArray[np.uint8], architecture: str
) -> None:
    predictor = Predictor(make_bundle(architecture), precision="fp32", engine="torch")
    before = predictor.predict(images).logits
    heat = grad_cam(predictor.network, predictor.manifest, images, before.argmax(1))
    assert heat.shape == images.shape[:3]
    assert heat.min() >= 0
    assert set(heat.max(axis=(1, 2))) <= {0.0, 1.0}
    assert not any(module._forward_hooks for module in predictor.network.modules())
    assert all(parameter.grad is None for parameter in predictor.network.parameters())
    np.testing.assert_array_equal(predictor.predict(images).logits, before)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_whatever_engine_predicts_the_class_asked_for_or_predicted_is_explained(
    make_bundle: MakeBundle, images: npt.NDArray[np.uint8], engine: EngineName
) -> None:
    predictor = Predictor(make_bundle("resnet18"), precision="fp32", engine=engine)
    predicted = int(predictor.predict(images[:1]).logits.argmax())
    class_id, heat = explain(predictor, images[0])
    assert class_id == predicted
    np.testing.assert_array_equal(heat, grad_cam(predictor.network, predictor.manifest, images[:1], [predicted])[0])
    other, cold = explain(predictor, images[0], (predicted + 1) % 3)
    assert other == (predicted + 1) % 3
    assert np.abs(heat - cold).max() > 0.1


def test_a_network_without_maps_and_a_missing_class_are_told(make_bundle: MakeBundle, images: npt.NDArray[np.uint8]) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 3))
    with pytest.raises(ConfigError, match="no layer with spatial size"):
        grad_cam(flat, make_bundle().manifest, images, [0] * 5)
    with pytest.raises(ValueError, match="expected one class per image"):
        grad_cam(RedOrBlue(), make_bundle().manifest, images, [0])
    assert grad_cam(RedOrBlue(), make_bundle().manifest, images[:0], []).shape == (0, 16, 16)


def test_the_overlay_keeps_the_cold_parts_of_the_picture(red_left_blue_right: npt.NDArray[np.uint8]) -> None:
    heat = np.zeros((16, 16), np.float32)
    heat[8:12, 10:14] = 1
    picture = np.asarray(overlay(red_left_blue_right[0], heat, side_px=64))
    assert picture.shape == (64, 64, 3)
    np.testing.assert_array_equal(picture[24, 16], (255, 128, 128))
    assert tuple(picture[40, 48]) != (128, 128, 255)

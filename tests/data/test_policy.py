import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy, RandAugment

from cifar_ray.config import AugmentationConfig
from cifar_ray.data.batches.policy import (
    AUTOAUGMENT_CIFAR,
    AUTOAUGMENT_LEVELS,
    OPERATIONS,
    RANDAUGMENT_LEVELS,
    apply_operations,
    draw_operations,
    operation_values,
)

SIDE_PX = 32


def smooth_images(count: int) -> torch.Tensor:
    """Uint8 `[N, 3, S, S]` with some of all levels, a little like pictures."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, SIDE_PX, mode="bicubic")
    return ((images * 1.4 - 0.2).clamp(0, 1) * 255).byte()


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_torchvisions_image_by_image(name: str) -> None:
    images = smooth_images(12)
    codes = np.full((12, 1), OPERATIONS.index(name))
    values = operation_values(codes, np.linspace(-1, 1, 12)[:, None], SIDE_PX)
    made = apply_operations(images.clone(), torch.from_numpy(codes), torch.from_numpy(values.astype(np.float32)))
    theirs = AutoAugment()
    for image, value, ours in zip(images, values[:, 0], made, strict=True):
        amount = value - 1 if name in ("Brightness", "Color", "Contrast", "Sharpness") else value / 255 if name == "Solarize" else value
        expected = theirs._apply_image_or_video_transform(image, name, float(amount), theirs.interpolation, theirs._fill)
        difference = (ours.int() - expected.int()).abs()
        if name in ("ShearX", "ShearY", "Rotate"):  # a pixel that comes from half-way between two may be taken from either
            assert (difference.amax(0) > 0).float().mean() < 0.02
        else:
            assert difference.max() <= (1 if name in ("Color", "Contrast", "Sharpness", "Brightness") else 0)


@pytest.mark.parametrize(("transform", "levels"), [(RandAugment, RANDAUGMENT_LEVELS), (AutoAugment, AUTOAUGMENT_LEVELS)])
def test_strengths_mean_what_they_mean_in_torchvision(transform: type, levels: int) -> None:
    for name, (magnitudes, signed) in transform._AUGMENTATION_SPACE.items():
        expected = magnitudes(levels, SIDE_PX, SIDE_PX)
        if expected is None:
            continue
        codes = np.full(levels, OPERATIONS.index(name))
        values = operation_values(codes, np.linspace(0, 1, levels), SIDE_PX)
        if name.startswith("Translate"):
            expected = expected.int()
        ours = values - 1 if name in ("Brightness", "Color", "Contrast", "Sharpness") else values / 255 if name == "Solarize" else values
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        moved = operation_values(codes, -np.linspace(0, 1, levels), SIDE_PX)
        assert (moved != values)[1:].any() == signed


def test_the_policy_is_that_of_torchvision() -> None:
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10)._policies
    assert [[(name, chance, level or 0) for name, chance, level in pair] for pair in theirs] == [list(pair) for pair in AUTOAUGMENT_CIFAR]


def test_randaugment_draws_all_its_operations_alike_and_in_both_directions() -> None:
    codes, values = draw_operations(AugmentationConfig(policy="randaugment", policy_ops=3), 7000, SIDE_PX, np.random.default_rng(0))
    assert codes.shape == values.shape == (7000, 3)
    counts = torch.bincount(codes.flatten(), minlength=len(OPERATIONS))
    assert counts[OPERATIONS.index("Invert")] == 0
    assert counts[:14].min() > 0.9 * 1500
    angles = values[codes == OPERATIONS.index("Rotate")]
    assert set(angles.tolist()) == {-9.0, 9.0}


def test_autoaugment_draws_each_operation_as_often_as_its_policy_says() -> None:
    codes, _ = draw_operations(AugmentationConfig(policy="autoaugment"), 50_000, SIDE_PX, np.random.default_rng(0))
    for place in range(2):
        for name in set(OPERATIONS) - {"Identity"}:
            expected = sum(pair[place][1] for pair in AUTOAUGMENT_CIFAR if pair[place][0] == name) / len(AUTOAUGMENT_CIFAR)
            assert float((codes[:, place] == OPERATIONS.index(name)).float().mean()) == pytest.approx(expected, abs=0.01)

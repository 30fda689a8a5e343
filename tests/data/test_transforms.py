import numpy as np
import pytest
import torch

from cifar_ray.config import AugmentationConfig
from cifar_ray.data.transforms import Augmentation, cutout, normalize, shift_and_mirror

IMAGES = torch.randint(0, 256, (5, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draw(size: int = 64, seed: int = 1, **config: object) -> Augmentation:
    return Augmentation.draw(AugmentationConfig(**config), size, 9, torch.Generator().manual_seed(seed))


def test_shift_and_mirror_equal_padding_by_reflection_cropping_and_flipping_each_image() -> None:
    drawn = draw(flip="random", translate_px=3)
    indices = torch.randint(0, 5, (64,))
    result = shift_and_mirror(IMAGES, indices, drawn)
    for i, index in enumerate(indices):
        padded = np.pad(IMAGES[index].numpy(), ((3, 3), (3, 3), (0, 0)), mode="reflect")
        down, right = drawn.shift[i].tolist()
        expected = padded[3 - down : 12 - down, 3 - right : 12 - right]
        np.testing.assert_array_equal(result[i], expected[:, ::-1] if drawn.mirrored[i] else expected)


def test_without_draws_images_stay_as_they_are() -> None:
    drawn = draw(size=5, flip="none", translate_px=0)
    assert torch.equal(shift_and_mirror(IMAGES, torch.arange(5), drawn), IMAGES)


def test_every_shift_within_reach_is_drawn() -> None:
    shifts = draw(size=2000, translate_px=2).shift
    assert {tuple(shift) for shift in shifts.tolist()} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}


def test_draws_follow_from_the_seed_alone_and_a_slice_is_the_same_as_drawing_all() -> None:
    whole = draw(seed=3)
    assert torch.equal(draw(seed=3)[10:20].shift, whole.shift[10:20])
    assert not torch.equal(draw(seed=4).shift, whole.shift)


def test_cutout_sets_one_square_to_zero_and_clips_it_at_the_border() -> None:
    images = torch.ones(2, 3, 9, 9)
    cutout(images, torch.tensor([[2, 3], [-2, 7]]), side_px=4)
    assert images[0].sum() == 3 * (81 - 16)
    assert (images[0, :, 2:6, 3:7] == 0).all()
    assert images[1].sum() == 3 * (81 - 2 * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize_is_the_textbook_formula_in_channels_last(dtype: torch.dtype) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (IMAGES.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    result = normalize(IMAGES, mean, std, dtype)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(result.permute(0, 2, 3, 1).double(), expected, atol=tolerance, rtol=tolerance)

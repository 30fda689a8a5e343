import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as torchvision

from cifar_ray.config import AugmentationConfig
from cifar_ray.data.batches.augmentation import Augmentation
from cifar_ray.data.batches.transforms import erase, jitter, mix, normalize, shift_and_mirror, turn

IMAGES = torch.randint(0, 256, (5, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDICES = torch.randint(0, 5, (64,), generator=torch.Generator().manual_seed(1))
SHIFT = torch.randint(-3, 4, (64, 2), generator=torch.Generator().manual_seed(2))
MIRRORED = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(3), dtype=torch.bool)


def padded(image: torch.Tensor, down: int, right: int, mirrored: bool, margin: int) -> np.ndarray:
    """An image of 9 px shifted, then mirrored, with a margin around it that goes on by reflection."""
    wide = np.pad(image.numpy(), ((margin + 3, margin + 3),) * 2 + ((0, 0),), mode="reflect")
    side = 9 + 2 * margin
    part = wide[3 - down : 3 - down + side, 3 - right : 3 - right + side]
    return part[:, ::-1] if mirrored else part


def test_shift_and_mirror_equal_padding_by_reflection_cropping_and_flipping_each_image() -> None:
    result = shift_and_mirror(IMAGES, INDICES, SHIFT, MIRRORED, reach_px=3)
    for index, shift, mirrored, made in zip(INDICES, SHIFT.tolist(), MIRRORED.tolist(), result, strict=True):
        np.testing.assert_array_equal(made, padded(IMAGES[index], *shift, mirrored, margin=0))


def test_without_draws_images_stay_as_they_are() -> None:
    still = torch.zeros(5, 2, dtype=torch.long), torch.zeros(5, dtype=torch.bool)
    assert torch.equal(shift_and_mirror(IMAGES, torch.arange(5), *still, reach_px=0), IMAGES)
    assert torch.equal(turn(IMAGES, torch.arange(5), *still, torch.zeros(5)), IMAGES)


def test_turn_equals_turning_each_image_after_shift_and_mirror_with_torchvision() -> None:
    angle = torch.linspace(-180, 180, 64)
    result = turn(IMAGES, INDICES, SHIFT, MIRRORED, angle.deg2rad())
    for index, shift, mirrored, degrees, made in zip(INDICES, SHIFT.tolist(), MIRRORED.tolist(), angle.tolist(), result, strict=True):
        wide = torch.from_numpy(padded(IMAGES[index], *shift, mirrored, margin=5).copy()).permute(2, 0, 1)
        turned = torchvision.rotate(wide, degrees, torchvision.InterpolationMode.BILINEAR)[:, 5:-5, 5:-5]
        torch.testing.assert_close(made.permute(2, 0, 1).int(), turned.int(), atol=1, rtol=0)


@pytest.mark.parametrize("side_px", [9, 33])
def test_a_crop_equals_cropping_and_resizing_each_image_with_torchvision(side_px: int) -> None:
    drawn = Augmentation.draw(AugmentationConfig(crop_scale=0.1), 64, side_px, torch.Generator().manual_seed(0))
    assert drawn.crop is not None
    images = torch.randint(0, 256, (5, side_px, side_px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    still = torch.zeros(64, 2, dtype=torch.long)
    result = turn(images, INDICES, still, MIRRORED, None, drawn.crop)
    for index, box, mirrored, made in zip(INDICES, drawn.crop.tolist(), MIRRORED.tolist(), result, strict=True):
        expected = torchvision.resized_crop(images[index].permute(2, 0, 1), *box, [side_px, side_px], antialias=False)
        expected = expected.flip(2) if mirrored else expected
        torch.testing.assert_close(made.permute(2, 0, 1).int(), expected.int(), atol=1, rtol=0)


def test_a_crop_is_shifted_and_turned_after_it_was_enlarged() -> None:
    angle = torch.linspace(-3, 3, 64)
    boxes = torch.tensor([[1, 2, 6, 5]]).expand(64, 4)
    still = torch.zeros(64, 2, dtype=torch.long), torch.zeros(64, dtype=torch.bool)
    enlarged = turn(IMAGES, INDICES, *still, None, boxes)
    in_one = turn(IMAGES, INDICES, SHIFT, MIRRORED, torch.zeros(64), boxes)
    torch.testing.assert_close(in_one.int(), turn(enlarged, torch.arange(64), SHIFT, MIRRORED, torch.zeros(64)).int(), atol=1, rtol=0)
    smooth = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 9, 3).mul(20).to(torch.uint8)  # else interpolating twice differs
    enlarged = turn(smooth, torch.zeros(64, dtype=torch.long), *still, None, boxes)
    in_one = turn(smooth, torch.zeros(64, dtype=torch.long), *still, angle, boxes)
    twice = turn(enlarged, torch.arange(64), *still, angle)
    assert float((in_one.float() - twice.float()).abs().mean()) < 1.5
    whole = torch.tensor([[0, 0, 9, 9]]).expand(64, 4)
    torch.testing.assert_close(
        turn(IMAGES, INDICES, SHIFT, MIRRORED, angle, whole).int(), turn(IMAGES, INDICES, SHIFT, MIRRORED, angle).int(), atol=1, rtol=0
    )


def test_jitter_equals_torchvision_image_by_image_where_nothing_is_cut_off() -> None:
    planes = IMAGES.permute(0, 3, 1, 2) / 255 * 0.3 + 0.3
    colour = torch.tensor([[1.2, 0.7, 1.3, 0], [0.8, 1.2, 0.6, 0], [1, 1, 1, 0], [1.1, 1, 0.5, 0], [1, 0.5, 1, 0]])
    for planes_of_one, made, (brightness, contrast, saturation, _) in zip(
        planes, jitter(planes * 255, colour), colour.tolist(), strict=True
    ):
        expected = torchvision.adjust_contrast(torchvision.adjust_brightness(planes_of_one, brightness), contrast)
        torch.testing.assert_close(made / 255, torchvision.adjust_saturation(expected, saturation), atol=1e-3, rtol=0)


def test_hue_turns_each_colour_in_yiq() -> None:
    planes = IMAGES.permute(0, 3, 1, 2).float() / 255
    turned = jitter(planes, torch.tensor([[1, 1, 1, 0.7]]).expand(5, 4))
    for colour, made in zip(planes.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), turned.permute(0, 2, 3, 1).reshape(-1, 3), strict=True):
        luma, in_phase, quadrature = colorsys.rgb_to_yiq(*colour)
        chroma = complex(in_phase, quadrature) * np.exp(0.7j)
        assert (luma, chroma.real, chroma.imag) == pytest.approx(colorsys.rgb_to_yiq(*made.tolist()), abs=5e-3)


def test_erase_sets_one_rectangle_to_zero_and_clips_it_at_the_border() -> None:
    images = torch.ones(3, 3, 9, 9)
    erase(images, torch.tensor([[2, 3, 6, 7], [-2, 7, 2, 11], [4, 4, 4, 4]]))
    assert images[0].sum() == 3 * (81 - 16)
    assert torch.equal(images[0], torchvision.erase(torch.ones(3, 9, 9), 2, 3, 4, 4, torch.zeros(3, 1, 1)))
    assert images[1].sum() == 3 * (81 - 2 * 2)
    assert images[2].sum() == 3 * 81


@pytest.mark.parametrize(("transform", "kept", "box"), [(v2.MixUp, 0.3, (0, 0, 0, 0)), (v2.CutMix, None, (1, 2, 5, 9))])
def test_mix_equals_torchvision(
    transform: type, kept: float | None, box: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchvision mixes with the image before, so the batch is turned round for it."""
    images, labels = torch.rand(6, 3, 9, 9), torch.nn.functional.one_hot(torch.arange(6) % 4, 4).float()
    top, left, bottom, right = box
    given = (bottom - top) * (right - left) / 81
    drawn = {"lam": kept, "lam_adjusted": 1 - given, "box": (left, top, right, bottom)}
    theirs = transform(num_classes=4)
    monkeypatch.setattr(theirs, "make_params", lambda _: drawn)
    expected_images, expected_labels = theirs(images.flip(0), labels.flip(0))
    made, shares = mix(images, labels, None if kept is None else torch.full((5,), kept), torch.tensor([box]).expand(5, 4))
    torch.testing.assert_close(made, expected_images.flip(0)[:5])
    torch.testing.assert_close(shares, expected_labels.flip(0)[:5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize_is_the_textbook_formula_in_channels_last(dtype: torch.dtype) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (IMAGES.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    result = normalize(IMAGES, mean, std, dtype)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(result.permute(0, 2, 3, 1).double(), expected, atol=tolerance, rtol=tolerance)

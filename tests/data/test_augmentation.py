import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from cifar_ray.config import AugmentationConfig
from cifar_ray.data.batches.augmentation import Augmentation
from cifar_ray.data.batches.loader import Normalization, TrainLoader
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import ImageDataset

EVERYTHING = {
    "flip": "random",
    "translate_px": 2,
    "cutout_px": 3,
    "rotate_deg": 20,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
    "noise_std": 0.05,
    "erase": 0.5,
    "mixup": 0.5,
    "cutmix": 1.0,
    "policy": "randaugment",
    "crop_scale": 0.3,
}
ONE_BY_ONE = [
    *({name: value} for name, value in EVERYTHING.items() if name not in ("flip", "policy")),
    {"policy": "randaugment"},
    {"policy": "autoaugment"},
]
KEYS, QUANTILES = ("height", "width"), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
RNG = np.random.default_rng(0)
DATASET = ImageDataset(RNG.integers(0, 256, (53, 16, 16, 3), np.uint8), RNG.integers(0, 4, 53), tuple("abcd"))


def draw(size: int = 64, seed: int = 1, **config: object) -> Augmentation:
    return Augmentation.draw(AugmentationConfig(**config), size, 9, torch.Generator().manual_seed(seed))


def batches(shard: Shard = Shard(), seed: int = 0, epoch: int = 1, micro_batch_size: int = 7, **config: object) -> list[torch.Tensor]:  # noqa: B008
    """The inputs of each step of an epoch, and then its labels."""
    loader = TrainLoader(
        DATASET,
        batch_size=20,
        micro_batch_size=micro_batch_size,
        augmentation=AugmentationConfig(**{"flip": "none", "translate_px": 0, **config}),
        normalization=Normalization((0.0,) * 3, (1.0,) * 3, torch.float32),
        shard=shard,
        seed=seed,
        device=torch.device("cpu"),
    )
    return [torch.cat(part) for step in loader.epoch(epoch) for part in zip(*step.pieces, strict=True)]


def test_every_shift_within_reach_is_drawn() -> None:
    shifts = draw(size=2000, translate_px=2).shift
    assert {tuple(shift) for shift in shifts.tolist()} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}


def test_draws_follow_from_the_seed_alone_and_a_slice_is_the_same_as_drawing_all() -> None:
    whole = draw(seed=3)
    assert torch.equal(draw(seed=3)[10:20].shift, whole.shift[10:20])
    assert not torch.equal(draw(seed=4).shift, whole.shift)


def test_what_one_change_draws_does_not_depend_on_the_others() -> None:
    everything = draw(**EVERYTHING)
    assert torch.equal(draw(translate_px=2).shift, everything.shift)
    assert torch.equal(draw(rotate_deg=20).angle, everything.angle)
    assert torch.equal(draw(erase=0.5).erased, everything.erased)
    assert torch.equal(draw(crop_scale=0.3).crop, everything.crop)


@pytest.mark.parametrize("config", [EVERYTHING, *ONE_BY_ONE], ids=lambda config: "everything" if len(config) > 1 else "".join(config))
def test_images_and_labels_are_the_same_for_any_number_of_workers_and_pieces(config: dict) -> None:
    alone = batches(**config)
    parts = [batches(Shard(rank, 3), micro_batch_size=4, **config) for rank in range(3)]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert torch.equal(whole, torch.cat(shares))


@pytest.mark.parametrize("config", ONE_BY_ONE, ids="".join)
def test_each_change_is_seen_differs_by_epoch_and_seed_and_is_repeatable(config: dict) -> None:
    once = batches(**config)[0]
    assert not torch.equal(once, batches()[0])
    assert torch.equal(once, batches(**config)[0])
    assert not torch.equal(once, batches(**config, epoch=3)[0])
    assert not torch.equal(once, batches(**config, seed=1)[0])


def test_pixels_stay_in_the_range_of_images() -> None:
    inputs = batches(brightness=1, contrast=1, saturation=1, hue=0.5, noise_std=0.5)[0]
    assert inputs.min() == 0
    assert inputs.max() == 1


def test_noise_has_its_deviation_and_differs_between_images() -> None:
    plain, noisy = batches()[0] / 2 + 0.25, batches(noise_std=0.02)[0]
    middle = (plain - 0.5).abs() < 0.15  # elsewhere it is cut off at the ends of the range
    noise = (noisy - (plain - 0.25) * 2)[middle]
    assert float(noise.std()) == pytest.approx(0.02, rel=0.03)
    assert abs(float(noise.mean())) < 0.001
    assert draw(noise_std=0.02).noise.unique().numel() == 64


def test_erased_rectangles_have_the_areas_shapes_and_frequency_of_the_paper() -> None:
    top, left, bottom, right = Augmentation.draw(AugmentationConfig(erase=0.3), 20_000, 100, torch.Generator()).erased.unbind(1)
    height, width = bottom - top, right - left
    assert float((height > 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    area = (height * width)[height > 0] / 100**2
    assert 0.018 < area.min() < 0.025
    assert 0.31 < area.max() < 0.34
    ratio = (height / width)[height > 0]
    assert 0.25 < ratio.min() < 0.35
    assert 3 < ratio.max() < 3.6
    assert torch.stack((top, left)).min() == 0
    assert torch.stack((bottom, right)).max() == 100


def test_crops_have_the_areas_and_shapes_of_torchvision_and_lie_inside() -> None:
    top, left, height, width = Augmentation.draw(AugmentationConfig(crop_scale=0.2), 20_000, 200, torch.Generator()).crop.unbind(1)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [v2.RandomResizedCrop(8, (0.2, 1)).make_params([torch.zeros(3, 200, 200)])[key] for _ in range(4000) for key in KEYS]
    )
    for ours, other in zip((height, width), theirs.view(-1, 2).unbind(1), strict=True):
        torch.testing.assert_close(ours.float().quantile(QUANTILES), other.float().quantile(QUANTILES), atol=4, rtol=0)
    assert torch.stack((top, left)).min() == 0
    assert torch.stack((top + height, left + width)).max() == 200
    ratio = width / height
    assert 0.73 < ratio.min() < ratio.max() < 1.36
    assert draw().crop is None


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_keeps_shares_drawn_from_the_beta(alpha: float) -> None:
    kept = draw(size=20_000, mixup=alpha).kept
    assert float(kept.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(kept.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_of_mixup_and_cutmix_each_image_has_one() -> None:
    drawn = draw(size=2000, mixup=1.0, cutmix=1.0)
    blended = drawn.kept < 1
    assert 900 < blended.sum() < 1100
    top, left, bottom, right = drawn.patch.unbind(1)
    assert ((bottom - top) * (right - left))[blended].sum() == 0


@pytest.mark.parametrize("config", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_labels_of_mixed_images_are_the_shares_that_each_image_has(config: dict) -> None:
    """White and black images: what is white of an image is the share of its first class."""
    white = np.repeat(np.array([0, 255], np.uint8), 20).repeat(16 * 16 * 3).reshape(40, 16, 16, 3)
    loader = TrainLoader(
        ImageDataset(white, np.repeat([0, 1], 20), ("black", "white")),
        batch_size=40,
        micro_batch_size=9,
        augmentation=AugmentationConfig(**config),
        normalization=Normalization((0.0,) * 3, (1.0,) * 3, torch.float32),
        shard=Shard(),
        seed=0,
        device=torch.device("cpu"),
    )
    inputs, labels = (torch.cat(part) for part in zip(*next(loader.epoch(0)).pieces, strict=True))
    assert labels.shape == (40, 2)
    torch.testing.assert_close(labels.sum(1), torch.ones(40))
    torch.testing.assert_close(labels[:, 1], inputs.mean((1, 2, 3)), atol=1e-5, rtol=0)
    assert 0.2 < labels[:, 1].mean() < 0.8

"""Draws of order and augmentation: the bits of the published generator, and those of earlier releases where a run has them."""

import numpy as np
import pytest
import torch

from cifar_ray.config import AugmentationConfig
from cifar_ray.data.batches import device_draws
from cifar_ray.data.batches.augmentation import Augmentation, mixtures
from cifar_ray.data.batches.device_draws import DeviceDraws
from cifar_ray.data.batches.host_draws import HostDraws
from cifar_ray.data.batches.philox import Stream, integers, philox, uniforms
from cifar_ray.data.batches.shares import batch_slices

CPU = torch.device("cpu")
EVERYTHING = {
    "flip": "random",
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
    "policy": "autoaugment",
    "crop_scale": 0.3,
}


def draws(
    size: int = 100, batch_size: int = 30, seed: int = 1, side_px: int = 32, sampling: str = "natural", **config: object
) -> DeviceDraws:
    labels = np.arange(size) % 4
    return DeviceDraws(AugmentationConfig(**config), labels, 4, sampling, batch_slices(size, batch_size), side_px, seed, CPU)


def drawn(size: int = 100, epoch: int = 0, **config: object) -> Augmentation:
    made = draws(size, size, **config)
    (whole,) = made.augmentations(epoch, made.order(epoch), 0)
    return whole


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_words_are_those_that_the_authors_publish(counter: tuple, key: tuple, words: tuple) -> None:
    """Known answers of Random123 1.14 for philox4x32-10."""
    found = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in found) == words


def test_words_depend_on_seed_purpose_epoch_and_position_only() -> None:
    positions = torch.arange(50)
    words = Stream(3, 1, 2).words(positions, 6)
    assert torch.equal(Stream(3, 1, 2).words(positions[20:30], 6), words[20:30])
    assert torch.equal(Stream(3, 1, 2).words(positions, 2), words[:, :2])
    for other in (Stream(4, 1, 2), Stream(3, 2, 2), Stream(3, 1, 3)):
        assert not (other.words(positions, 6) == words).any()


def test_numbers_from_words_are_uniform_and_in_their_range() -> None:
    words = Stream(0, 0).words(torch.arange(50_000), 1)[:, 0]
    counts = torch.bincount(integers(words, 0, 5))
    assert len(counts) == 5
    assert (counts - 10_000).abs().max() < 400
    assert set(integers(words, -2, 3).tolist()) == {-2, -1, 0, 1, 2}
    assert integers(torch.tensor([0, 2**32 - 1]), 3, 7).tolist() == [3, 6]
    fractions = uniforms(words)
    assert fractions.dtype == torch.float32
    assert 0 <= fractions.min() < 0.001
    assert 0.999 < fractions.max() < 1
    assert float(fractions.mean()) == pytest.approx(0.5, abs=0.005)


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    orders = [draws(seed=seed).order(epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(100))
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert torch.equal(draws().order(0), orders[0])


def test_balanced_orders_have_equally_many_images_of_each_class_and_repeat_none_too_early() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    made = DeviceDraws(AugmentationConfig(), labels, 4, "balanced", [slice(0, 100)], 32, 0, CPU)
    order = made.order(3).numpy()
    assert sorted(np.bincount(labels[order], minlength=4)) == [0, 33, 33, 34]
    counts = np.bincount(order, minlength=100)
    assert counts[:90].max() == 1
    assert np.ptp(counts[90:98]) <= 1
    assert np.ptp(counts[98:]) <= 1


def test_a_batch_is_the_same_from_any_step_on_and_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made = draws(**EVERYTHING)
    order = made.order(2)
    whole = list(made.augmentations(2, order, 0))
    monkeypatch.setattr(device_draws, "_AT_ONCE", 17)
    later = list(made.augmentations(2, order, 2))
    assert len(whole) == len(later) + 2
    for one, two in zip(whole[2:], later, strict=True):
        assert len(one.tensors()) == 12
        assert all(torch.equal(a, b) for a, b in zip(one.tensors(), two.tensors(), strict=True))


def test_what_one_change_draws_does_not_depend_on_the_others() -> None:
    everything = drawn(**EVERYTHING)
    assert torch.equal(drawn(flip="random").mirrored, everything.mirrored)
    assert torch.equal(drawn().shift, everything.shift)
    assert torch.equal(drawn(rotate_deg=20).angle, everything.angle)
    assert torch.equal(drawn(erase=0.5).erased, everything.erased)
    assert torch.equal(drawn(crop_scale=0.3).crop, everything.crop)


def test_both_versions_draw_from_the_same_distributions() -> None:
    """Quantiles of all parameters of 20,000 images; the versions share the names and no numbers."""
    config = AugmentationConfig(**EVERYTHING)
    old = Augmentation.draw(config, 20_000, 32, torch.Generator().manual_seed(0))
    new = drawn(20_000, **EVERYTHING)
    for name in ("mirrored", "shift", "cutout_corner", "angle", "codes", "values", "colour", "noise", "erased", "kept", "patch", "crop"):
        ours, theirs = (getattr(one, name).double().view(20_000, -1) for one in (new, old))
        assert getattr(new, name).dtype == getattr(old, name).dtype
        assert ours.shape == theirs.shape
        span = (theirs.max() - theirs.min()).item()
        torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.015 * span, rtol=0)
        torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.015 * span, rtol=0)
        torch.testing.assert_close(ours.amax(0), theirs.amax(0), atol=0.03 * span, rtol=0)
        torch.testing.assert_close(ours.amin(0), theirs.amin(0), atol=0.03 * span, rtol=0)


def test_randaugment_has_all_operations_in_both_directions() -> None:
    codes, values = (part.flatten() for part in (drawn(5000, policy="randaugment").codes, drawn(5000, policy="randaugment").values))
    old = Augmentation.draw(AugmentationConfig(policy="randaugment"), 5000, 32, torch.Generator().manual_seed(0))
    pairs = {(int(code), round(float(value), 4)) for code, value in zip(codes, values, strict=True)}
    assert pairs == {(int(code), round(float(value), 4)) for code, value in zip(old.codes.flatten(), old.values.flatten(), strict=True)}


def test_mixtures_are_drawn_for_a_whole_epoch() -> None:
    config = AugmentationConfig(mixup=0.4)
    kept, _ = mixtures(np.random.default_rng((1, 8, 5)), config, 100, 32)
    assert torch.equal(drawn(epoch=5, mixup=0.4).kept, torch.from_numpy(kept.astype(np.float32)))


def test_alternating_flips_are_those_of_the_image_and_turn_each_epoch() -> None:
    made = draws(60, 60)
    orders = [made.order(epoch) for epoch in range(2)]
    flips = [next(made.augmentations(epoch, order, 0)).mirrored[order.argsort()] for epoch, order in enumerate(orders)]
    assert torch.equal(flips[0], ~flips[1])
    assert 15 < flips[0].sum() < 45


def test_the_draws_of_earlier_releases_are_unchanged() -> None:
    """Numbers of release 0.1: a run that it began must continue with them."""
    made = HostDraws(AugmentationConfig(), np.zeros(12, np.int64), 1, "natural", batch_slices(12, 6), 32, 7, CPU)
    order = made.order(1)
    steps = list(made.augmentations(1, order, 0))
    assert order.tolist() == ORDER_OF_0_1
    assert [step.shift.tolist() for step in steps] == SHIFTS_OF_0_1
    assert [step.mirrored.int().tolist() for step in steps] == FLIPS_OF_0_1


ORDER_OF_0_1 = [5, 9, 0, 2, 7, 6, 3, 10, 8, 1, 4, 11]
SHIFTS_OF_0_1 = [[[-1, 2], [2, 0], [1, 2], [2, -2], [1, -1], [-1, 1]], [[0, -1], [1, 0], [-1, -2], [0, 0], [2, -1], [2, 1]]]
FLIPS_OF_0_1 = [[0, 0, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]]

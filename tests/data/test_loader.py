import numpy as np
import pytest
import torch

from cifar_ray.config import AugmentationConfig
from cifar_ray.data.batches.loader import EvaluationLoader, Normalization, TrainLoader
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.errors import DataError

CPU = torch.device("cpu")
PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.float32)


def numbered(size: int) -> ImageDataset:
    """Images that carry their own number in the first pixel."""
    images = np.zeros((size, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(size) % 256, np.arange(size) // 256
    return ImageDataset(images, np.arange(size) % 3, ("a", "b", "c"))


def loader(size: int = 103, shard: Shard = Shard(), seed: int = 0, **options: object) -> TrainLoader:  # noqa: B008
    settings = {"batch_size": 20, "micro_batch_size": 7, "augmentation": AugmentationConfig(flip="none", translate_px=0)} | options
    return TrainLoader(numbered(size), normalization=PLAIN, shard=shard, seed=seed, device=CPU, **settings)


def numbers(inputs: torch.Tensor) -> list[int]:
    pixels = (inputs[:, :2, 0, 0] * 255).round().long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def seen(train_loader: TrainLoader, epoch: int = 0, first_step: int = 0) -> list[list[int]]:
    return [[n for inputs, _ in step.pieces for n in numbers(inputs)] for step in train_loader.epoch(epoch, first_step)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_image_is_seen_once_an_epoch_over_all_ranks(world_size: int) -> None:
    steps = [seen(loader(shard=Shard(rank, world_size))) for rank in range(world_size)]
    assert sorted(n for rank in steps for step in rank for n in step) == list(range(103))


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_step_sees_the_same_images_for_any_number_of_workers(world_size: int) -> None:
    alone = seen(loader())
    together = [seen(loader(shard=Shard(rank, world_size))) for rank in range(world_size)]
    assert [[n for rank in together for n in rank[step]] for step in range(len(alone))] == alone


def test_augmentation_does_not_depend_on_the_number_of_workers() -> None:
    augmentation = AugmentationConfig(flip="alternating", translate_px=2, cutout_px=3)
    alone, half = (next(loader(shard=shard, augmentation=augmentation).epoch(1)) for shard in (Shard(), Shard(1, 2)))
    whole = torch.cat([inputs for inputs, _ in alone.pieces])
    mine = torch.cat([inputs for inputs, _ in half.pieces])
    assert torch.equal(whole[len(whole) - len(mine) :], mine)


def test_batches_differ_by_one_image_at_most() -> None:
    sizes = [len(step) for step in seen(loader())]
    assert len(sizes) == 6
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 20


def test_pieces_are_no_larger_than_asked_for_and_labels_belong_to_images() -> None:
    for step in loader().epoch(0):
        for inputs, labels in step.pieces:
            assert 0 < len(inputs) <= 7
            assert [n % 3 for n in numbers(inputs)] == labels.tolist()


def test_order_changes_with_epoch_and_seed_and_is_repeatable() -> None:
    assert seen(loader(), 1) == seen(loader(), 1)
    assert seen(loader(), 1) != seen(loader(), 2)
    assert seen(loader(), 1) != seen(loader(seed=1), 1)


def test_an_epoch_can_be_taken_up_in_the_middle() -> None:
    assert seen(loader(), epoch=3, first_step=4) == seen(loader(), epoch=3)[4:]


def test_alternating_flip_turns_every_image_every_epoch() -> None:
    flipping = loader(size=40, batch_size=40, augmentation=AugmentationConfig(flip="alternating", translate_px=0), micro_batch_size=None)
    mirrored = []
    for epoch in range(3):
        inputs, _ = next(next(flipping.epoch(epoch)).pieces)
        at_left = (inputs[:, :2, 0, 0] * 255).round().long()
        at_right = (inputs[:, :2, 0, 7] * 255).round().long()
        mirrored.append({int(n) for n in at_right[:, 0] if n > 0})
        assert not mirrored[-1] & {int(n) for n in at_left[:, 0] if n > 0}
    assert mirrored[0] == mirrored[2]
    assert mirrored[0] | mirrored[1] == set(range(1, 40))
    assert not mirrored[0] & mirrored[1]


def test_a_batch_larger_than_the_data_is_refused_with_advice() -> None:
    with pytest.raises(DataError, match=r"batch_size: 200 .* 103 training images; pass --batch-size 8"):
        loader(batch_size=200)


def test_batches_that_would_leave_a_worker_without_an_image_are_refused() -> None:
    """10 images in batches of up to 4 make three batches, one of 3."""
    with pytest.raises(DataError, match="a batch of 3 images is too small for 4 workers"):
        loader(size=10, batch_size=4, shard=Shard(0, 4))


def test_a_step_says_how_many_pieces_it_has() -> None:
    assert [step.num_pieces for step in loader().epoch(0)] == [len(list(step.pieces)) for step in loader().epoch(0)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_sharded_evaluation_counts_every_image_exactly_once(world_size: int) -> None:
    found: list[int] = []
    for rank in range(world_size):
        part = EvaluationLoader(numbered(11), batch_size=4, normalization=PLAIN, shard=Shard(rank, world_size), device=CPU)
        found += [n for inputs, _ in part for n in numbers(inputs)]
    assert found == list(range(11))


def test_more_workers_than_images_still_evaluates_each_once() -> None:
    counts = [
        sum(len(labels) for _, labels in EvaluationLoader(numbered(2), batch_size=4, normalization=PLAIN, shard=Shard(r, 4), device=CPU))
        for r in range(4)
    ]
    assert sum(counts) == 2

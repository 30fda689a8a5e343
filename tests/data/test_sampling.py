"""Balanced sampling: how often each class and each image comes, for any number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_ray.config import AugmentationConfig
from cifar_ray.data.batches.loader import Normalization, TrainLoader
from cifar_ray.data.batches.sampling import draw_order
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.reading.picture_source import Pictures
from cifar_ray.data.streamed import PictureFiles, StreamedImages, TrainingImages

LABELS = np.repeat([0, 1, 2], (70, 25, 5))


def order(seed: int = 0, labels: np.ndarray = LABELS, classes: int = 3) -> torch.Tensor:
    return draw_order(torch.from_numpy(labels), classes, "balanced", torch.Generator().manual_seed(seed))


def test_classes_come_equally_often_and_images_repeat_only_after_all_others_of_their_class() -> None:
    drawn = order()
    assert drawn.shape == (100,)
    assert sorted(np.bincount(LABELS[drawn]).tolist()) == [33, 33, 34]
    times = np.bincount(drawn, minlength=100)
    for label in range(3):
        assert np.ptp(times[label == LABELS]) <= 1
    assert set(LABELS[drawn[:20]].tolist()) == {0, 1, 2}  # shuffled over the classes
    assert torch.equal(drawn, order())
    assert not torch.equal(drawn, order(seed=1))


def test_over_the_epochs_every_image_of_a_large_class_is_used() -> None:
    used = np.unique(np.concatenate([order(seed) for seed in range(12)]))
    assert len(used) == 100


def test_a_class_without_images_is_left_out() -> None:
    drawn = order(labels=np.repeat([0, 3], (8, 2)), classes=5)
    assert np.bincount(np.repeat([0, 3], (8, 2))[drawn]).tolist() == [5, 0, 0, 5]


IMAGES = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)


def seen(shard: Shard, streamed: bool = False) -> list[list[int]]:
    """Numbers of the images of each step."""
    dataset: TrainingImages = ImageDataset(IMAGES, LABELS.astype(np.int64), ("a", "b", "c"))
    if streamed:
        pictures = PictureFiles(Pictures(Path(), np.zeros(100, "S1")), 8, "pad")
        statistics = ((0.0,) * 3, (1.0,) * 3)
        dataset = StreamedImages(pictures, dataset.labels, dataset.class_names, statistics, "", lambda rows: iter([IMAGES[rows]]))
    loader = TrainLoader(
        dataset,
        batch_size=30,
        micro_batch_size=7,
        augmentation=AugmentationConfig(translate_px=0),
        normalization=Normalization((0.0,) * 3, (1.0,) * 3, torch.float32),
        shard=shard,
        seed=3,
        device=torch.device("cpu"),
        sampling="balanced",
    )
    return [[round(255 * float(image[0, 0, 0])) for inputs, _ in step.pieces for image in inputs] for step in loader.epoch(1)]


def test_streamed_images_come_in_the_same_order() -> None:
    assert seen(Shard(1, 2), streamed=True) == seen(Shard(1, 2))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_step_has_the_same_images_for_any_number_of_workers(world_size: int) -> None:
    alone = seen(Shard())
    shares = [seen(Shard(rank, world_size)) for rank in range(world_size)]
    assert [[n for share in shares for n in share[step]] for step in range(len(alone))] == alone
    assert sorted(np.bincount(LABELS[[n for step in alone for n in step]]).tolist()) == [33, 33, 34]


@pytest.mark.parametrize("labels", [np.arange(100) % 10, np.repeat(np.arange(10), 10), np.random.default_rng(0).permutation(100) % 10])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_sample_has_as_many_images_of_each_class_however_the_data_set_is_ordered(labels: np.ndarray, streamed: bool) -> None:
    """AirNet's whitening is computed on it. Every tenth image of labels that repeat 0–9 would be of one class."""
    dataset: TrainingImages = ImageDataset(IMAGES, labels.astype(np.int64), tuple("abcdefghij"))
    if streamed:
        dataset = StreamedImages(
            Files(Pictures(Path(), np.zeros(100, "S1")), 8, "pad"), dataset.labels, dataset.class_names, UNIT, "", iter
        )
    loader = TrainLoader(
        dataset,
        batch_size=30,
        micro_batch_size=None,
        augmentation=AugmentationConfig(),
        normalization=Normalization(*UNIT, torch.float32),
        shard=Shard(),
        seed=0,
        device=torch.device("cpu"),
    )
    rows = loader.sample(20)[:, 0, 0, 0].numpy()  # the value of a pixel is the number of its image
    assert np.bincount(labels[rows]).tolist() == [2] * 10
    assert np.array_equal(rows, loader.sample(20)[:, 0, 0, 0].numpy())


class Files(PictureFiles):
    """Picture files that need not exist."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The images of `IMAGES`."""
        return IMAGES[rows]


UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

"""Streamed images, decoded in this process: the same training as with images in memory."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cifar_ray.config import AugmentationConfig, TrainConfig, parse_config
from cifar_ray.data import DatasetSplits, StreamedSplits, channel_mean_std, folder, load_splits, open_splits, sources
from cifar_ray.data.batches.loader import Normalization, TrainLoader
from cifar_ray.data.batches.shares import Shard, images_read_per_epoch
from cifar_ray.errors import ConfigError, DataError

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.float32)


@pytest.fixture
def pets(tmp_path: Path, make_pictures: Callable[..., list[Path]]) -> Path:
    """Three classes of 120 pictures that are not square."""
    for name in ("cat", "dog", "newt"):
        make_pictures(tmp_path / "pets" / name, 120, size=(20, 10))
    return tmp_path / "pets"


def config(root: Path, **settings: Any) -> TrainConfig:
    return parse_config(TrainConfig, {"dataset": "folder", "data_dir": str(root), "image_size": 16, **settings})


def both(root: Path, **settings: Any) -> tuple[DatasetSplits, StreamedSplits]:
    held, streams = load_splits(config(root, **settings)), open_splits(config(root, stream="always", **settings))
    assert isinstance(streams, StreamedSplits)
    return held, streams


def assert_same(held: DatasetSplits, streams: StreamedSplits) -> None:
    train = streams.train
    assert np.array_equal(train.pictures.read(np.arange(len(train))), held.train.images)
    assert np.array_equal(train.labels, held.train.labels)
    assert train.class_names == held.train.class_names
    assert train.mean_std == channel_mean_std(held.train)
    for mine, other in ((streams.val, held.val), (streams.test, held.test)):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            assert np.array_equal(mine.images, other.images)
            assert [mine.name_of(row) for row in range(len(mine))] == [other.name_of(row) for row in range(len(other))]
    assert streams.fingerprint == held.fingerprint


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 3, "val_fraction": 0.3, "resize_policy": "squash"},
        {"val_fraction": 0, "test_fraction": 0},
        {"groups": ("pet=dog,cat", "wild=newt")},
        {"groups": ("one=dog", "two=newt")},
    ],
)
def test_streamed_splits_are_those_in_memory(pets: Path, settings: dict[str, Any]) -> None:
    assert_same(*both(pets, **settings))


def test_splits_that_a_folder_brings_along_stay_as_they_are(tmp_path: Path, make_pictures: Callable[..., list[Path]]) -> None:
    for split, count in (("train", 9), ("val", 2), ("test", 3)):
        for name in ("dog", "cat"):
            make_pictures(tmp_path / "pets" / split / name, count)
    assert_same(*both(tmp_path / "pets"))


def test_broken_pictures_are_left_out_as_they_are_in_memory(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat/003.png", "newt/077.png"):
        (pets / name).write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        assert_same(*both(pets))
    lines = [record.getMessage() for record in caplog.records if "as damaged" in record.getMessage()]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "left out 2 of 360 pictures as damaged" in lines[0]


def test_a_class_that_is_mostly_broken_is_refused_as_it_is_in_memory(pets: Path) -> None:
    pictures = sorted((pets / "cat").iterdir())
    for path in pictures[: len(pictures) // 2 + 1]:
        path.write_bytes(b"broken")
    for stream in ("always", "never"):
        with pytest.raises(DataError, match=r"more than half of the .* pictures of class 'cat' are damaged; .* The first are: .*000\.png"):
            open_splits(config(pets, stream=stream))


def test_a_picture_that_breaks_during_training_is_named(pets: Path) -> None:
    _, streams = both(pets)
    (pets / streams.train.pictures.files.names[5].decode()).unlink()
    with pytest.raises(DataError, match=r"\d+\.png.*intact when training started"):
        streams.train.pictures.read(np.arange(8))


def test_the_second_time_nothing_is_decoded(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_splits(config(pets, stream="always"))
    monkeypatch.setattr(folder, "decode_square", None)
    assert open_splits(config(pets, stream="always")).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("settings", "streams"),
    [
        ({}, False),
        ({"data_memory": "0.2MB"}, True),  # 360 pictures of 768 bytes
        ({"data_memory": "0.3MB"}, False),
        ({"data_memory": "0.3MB", "num_workers": 2}, True),
        ({"data_memory": "0.2MB", "stream": "never"}, False),
        ({"stream": "always"}, True),
    ],
)
def test_size_decides_and_one_line_says_so(pets: Path, settings: dict[str, Any], streams: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = open_splits(config(pets, **settings))
    assert isinstance(found, StreamedSplits) == streams
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("streaming: 360 pictures of 16 px")]
    assert len(said) == streams


def test_auto_is_a_quarter_of_the_machine(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, streams in ((4 * 360 * 768, False), (4 * 360 * 768 - 4, True)):
        monkeypatch.setattr(sources, "memory_bytes", lambda memory=memory: memory)
        assert isinstance(open_splits(config(pets)), StreamedSplits) == streams


def test_only_folders_stream() -> None:
    with pytest.raises(ConfigError, match=r"stream: digits fits in memory; only --dataset folder"):
        parse_config(TrainConfig, {"dataset": "digits", "stream": "always"})


UNMIXED = AugmentationConfig(flip="alternating", translate_px=2, cutout_px=3)
MIXTURES = {
    "mixup": UNMIXED.model_copy(update={"mixup": 0.4}),
    "cutmix": UNMIXED.model_copy(update={"cutmix": 1.0}),
    "both": UNMIXED.model_copy(update={"mixup": 0.4, "cutmix": 1.0}),
}


def steps(
    splits: Any, shard: Shard, epoch: int, first_step: int = 0, augmentation: AugmentationConfig = UNMIXED
) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    loader = TrainLoader(
        splits.train,
        batch_size=50,
        micro_batch_size=7,
        augmentation=augmentation,
        normalization=PLAIN,
        shard=shard,
        seed=5,
        device=torch.device("cpu"),
    )
    return [(step.global_size, inputs, labels) for step in loader.epoch(epoch, first_step) for inputs, labels in step.pieces]


@pytest.mark.parametrize(("rank", "world_size", "epoch", "first_step"), [(0, 1, 0, 0), (1, 2, 3, 0), (2, 3, 1, 4)])
def test_each_step_sees_the_very_inputs_of_data_in_memory(pets: Path, rank: int, world_size: int, epoch: int, first_step: int) -> None:
    held, streams = (steps(splits, Shard(rank, world_size), epoch, first_step) for splits in both(pets))
    assert len(held) == len(streams) > 5
    for one, other in zip(held, streams, strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[2], other[2])


def test_workers_that_stream_mix_the_same_pictures_with_the_same_weights_as_one_worker_in_memory(pets: Path) -> None:
    held, streams = both(pets)
    for mixture in MIXTURES.values():
        alone = global_batches([steps(held, Shard(), 1, 4, mixture)])
        for world_size in (1, 2, 3):
            shared = global_batches([steps(streams, Shard(rank, world_size), 1, 4, mixture) for rank in range(world_size)])
            assert len(alone) == len(shared) == 2
            for (inputs, labels), (theirs, their_labels) in zip(alone, shared, strict=True):
                assert torch.equal(inputs, theirs)
                assert torch.equal(labels, their_labels)
                assert ((labels > 0).sum(1) > 1).any()  # some are mixed with a picture of another class


def global_batches(workers: list[list[tuple[int, torch.Tensor, torch.Tensor]]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of each global batch, from the micro-batches of all workers."""
    joined: list[tuple[torch.Tensor, torch.Tensor]] = []
    queues = [list(pieces) for pieces in workers]
    while queues[0]:
        size, parts = queues[0][0][0], []
        for rank, queue in enumerate(queues):
            left = len(range(size)[Shard(rank, len(queues)).slice(size)])
            while left:
                _, inputs, labels = queue.pop(0)
                left -= len(inputs)
                parts.append((inputs, labels))
        joined.append((torch.cat([inputs for inputs, _ in parts]), torch.cat([labels for _, labels in parts])))
    return joined


def test_the_number_of_images_that_a_worker_reads_is_what_its_loader_asks_for(pets: Path) -> None:
    _, streams = both(pets)
    asked: list[int] = []

    def feed(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
        asked.append(len(rows))
        return iter(())

    fed = dataclasses.replace(streams.train, feed=feed)
    shards = [Shard(rank, world_size) for world_size in (1, 2, 3, 4) for rank in range(world_size)]
    for shard, batch_size, augmentation in itertools.product(shards, (7, 50, 125), (UNMIXED, *MIXTURES.values())):
        loader = TrainLoader(
            fed,
            batch_size=batch_size,
            micro_batch_size=None,
            augmentation=augmentation,
            normalization=PLAIN,
            shard=shard,
            seed=5,
            device=torch.device("cpu"),
        )
        step = next(loader.epoch(0))
        assert asked.pop() == images_read_per_epoch(len(fed), batch_size, shard, augmentation.mixes)
        with pytest.raises(DataError, match="ended before the epoch"):
            next(step.pieces)


def test_an_epoch_that_was_left_early_does_not_spoil_the_next(pets: Path) -> None:
    _, streams = both(pets)
    loader = TrainLoader(
        streams.train,
        batch_size=50,
        micro_batch_size=None,
        augmentation=AugmentationConfig(flip="none", translate_px=0),
        normalization=PLAIN,
        shard=Shard(),
        seed=0,
        device=torch.device("cpu"),
    )
    next(next(loader.epoch(0)).pieces)
    again = [inputs for step in loader.epoch(1) for inputs, _ in step.pieces]
    fresh = [inputs for step in loader.epoch(1) for inputs, _ in step.pieces]
    assert all(torch.equal(one, other) for one, other in zip(again, fresh, strict=True))


def test_a_sample_of_larger_images_has_as_many_pixels(pets: Path) -> None:
    for size_px, count in ((16, 100), (32, 100), (64, 25)):
        streams = open_splits(config(pets, stream="always", image_size=size_px))
        loader = TrainLoader(
            streams.train,
            batch_size=50,
            micro_batch_size=None,
            augmentation=AugmentationConfig(),
            normalization=PLAIN,
            shard=Shard(),
            seed=0,
            device=torch.device("cpu"),
        )
        assert loader.sample(100).shape == (count, size_px, size_px, 3)

"""Streaming through Ray Data, on the shared cluster of two CPUs."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ray import train

from cifar_ray.cluster.plan import WorkerPlan
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import StreamedSplits, load_splits, open_splits
from cifar_ray.data.batches.loader import Normalization, TrainLoader
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.streamed import PictureFiles, StreamedImages
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.recipes import digits
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.on_ray.ingest import fed_by_ray, share_cpus, stream
from cifar_ray.training.on_ray.ray_trainer import train_on_ray
from cifar_ray.training.records.results import EpochReport, TrainedRun
from cifar_ray.training.records.run_folder import Run
from tests.conftest import make_stripes
from tests.training.test_distributed import Recorder

PLAIN_SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 pictures in three classes, one of them broken."""
    root = tmp_path_factory.mktemp("pictures") / "stripes"
    images = make_stripes(600)
    for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
        (root / images.class_names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / images.class_names[label] / f"{number:04}.png")
    (root / "plain" / "0002.png").write_bytes(b"broken")
    return root


def config(folder: Path, storage: Path, **changes: Any) -> TrainConfig:
    settings = {"dataset": "folder", "data_dir": str(folder), "storage": str(storage), "image_size": 16, "epochs": 2, "precision": "fp32"}
    return parse_config(TrainConfig, digits().model_dump() | settings | {"optimizer": PLAIN_SGD, "name": "run"} | changes)


def streamed(job: TrainConfig) -> TrainedRun:
    splits = open_splits(job)
    assert isinstance(splits, StreamedSplits)
    return train_on_ray(Run(job), Recorder(), splits.train)


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_that_stream_train_as_one_does_in_memory_and_count_each_image_once(
    ray_cluster: None, folder: Path, tmp_path: Path
) -> None:
    job = config(folder, tmp_path, num_workers=2, stream="always", epochs=1)
    held = load_splits(job)
    alone: list[EpochReport] = []
    fit(
        job,
        held,
        device=torch.device("cpu"),
        shard=Shard(),
        on_step=lambda *_: None,
        on_epoch=lambda report, _: alone.append(report),
    )
    run = streamed(job)
    (one,), (two,) = alone, run.history
    assert one.train_loss == pytest.approx(two.train_loss, abs=1e-4)
    assert one.val_loss == pytest.approx(two.val_loss, abs=1e-4)
    assert two.val_confusion is not None
    assert np.sum(two.val_confusion, axis=1).tolist() == held.val.class_counts().tolist()
    assert run.result.test_confusion is not None
    assert np.sum(run.result.test_confusion, axis=1).tolist() == held.test.class_counts().tolist()


def feeds(splits: StreamedSplits, job: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> list[StreamedImages]:
    """The streamed images of each worker, as they are in the worker."""
    workers = int(job.num_workers or 1)
    _, ingest = stream(splits.train, job, WorkerPlan(workers, 2.0 / workers, False), 2.0)
    found = []
    for shards in ingest["dataset_config"].configure(ingest["datasets"], workers, None, None):
        monkeypatch.setattr(train, "get_dataset_shard", shards.__getitem__)
        found.append(fed_by_ray(splits).train)
    return found


@pytest.mark.ray
def test_each_worker_gets_all_its_pictures_and_their_neighbours_for_mixing(
    ray_cluster: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PictureFiles, "chunk", 12)
    job = config(folder, tmp_path, stream="always", num_workers=3, batch_size=61, augmentation={"mixup": 0.4, "cutmix": 1.0})
    splits = open_splits(job)
    assert isinstance(splits, StreamedSplits)
    held = load_splits(job).train
    for rank, streams in enumerate(feeds(splits, job, monkeypatch)):
        expected, found = (
            [
                (inputs, labels)
                for step in TrainLoader(
                    images,
                    batch_size=job.batch_size,
                    micro_batch_size=8,
                    augmentation=job.augmentation,
                    normalization=Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.float32),
                    shard=Shard(rank, 3),
                    seed=1,
                    device=torch.device("cpu"),
                ).epoch(0)
                for inputs, labels in step.pieces
            ]
            for images in (held, streams)
        )
        assert len(expected) == len(found)
        assert all(
            torch.equal(one, other) for ours, theirs in zip(expected, found, strict=True) for one, other in zip(ours, theirs, strict=True)
        )


@pytest.mark.ray
def test_images_arrive_in_the_order_asked_for_and_a_picture_that_breaks_meanwhile_is_named_in_one_line(
    ray_cluster: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = config(folder, tmp_path, stream="always")
    splits = open_splits(job)
    assert isinstance(splits, StreamedSplits)
    monkeypatch.setattr(PictureFiles, "chunk", 70)
    (fed,) = feeds(splits, job, monkeypatch)
    images = splits.train.pictures.read(np.arange(len(splits.train)))
    for epoch in range(2):
        order = np.random.default_rng(epoch).permutation(len(splits.train))
        arrived = list(fed.feed(order))
        assert max(map(len, arrived)) == 70
        assert len(arrived) > 3
        assert np.array_equal(np.concatenate(arrived), images[order])
    victim = folder / splits.train.pictures.files.names[7].decode()
    sound = victim.read_bytes()
    victim.write_bytes(b"x")
    try:
        with pytest.raises(DataError, match=rf"{victim.name}.*do not change the pictures during training") as refused:
            list(fed.feed(np.arange(20)))
    finally:
        victim.write_bytes(sound)
    assert "\n" not in str(refused.value)
    other = dataclasses.replace(splits.train, fingerprint="of other pictures")
    with pytest.raises(DataError, match="the pictures differ between hosts"):
        fed_by_ray(StreamedSplits(splits.name, other, splits.val, splits.test))


def test_streams_are_made_for_a_number_of_workers_that_stays(folder: Path, tmp_path: Path) -> None:
    job = config(folder, tmp_path, num_workers="1:2", stream="always")
    with pytest.raises(ConfigError, match="num_workers: 1:2 is variable"):
        stream(open_splits(job).train, job, WorkerPlan(1, 2.0, False, bounds=(1, 2)), 2.0)


@pytest.mark.parametrize(
    ("free", "workers", "cpus", "use_gpu", "computes", "decodes"),
    [
        (2.0, 1, 2.0, False, 1.0, 1.0),
        (2.0, 2, 1.0, False, 0.5, 0.5),
        (16.0, 1, 16.0, False, 8.0, 8.0),
        (0.7, 1, 0.7, False, 0.35, 0.35),
        (16.0, 1, 16.0, True, 1.0, 15.0),
        (12.0, 6, 1.0, False, 1.0, 1.0),  # several hosts
    ],
)
def test_workers_leave_cpus_to_decoding(free: float, workers: int, cpus: float, use_gpu: bool, computes: float, decodes: float) -> None:
    assert share_cpus(WorkerPlan(workers, cpus, use_gpu), free) == (computes, decodes)


def test_decoding_tasks_and_the_actor_of_the_line_import_no_torch() -> None:
    """It would take 300 MB in each of them."""
    code = "import sys, cifar_ray.training.on_ray.channel, cifar_ray.training.on_ray.ingest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

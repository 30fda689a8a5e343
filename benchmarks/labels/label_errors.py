"""Flip labels of CIFAR-10's training images, and measure how many of them `check_labels` finds.

    python -m benchmarks.labels errors --data-dir DIR --out rows.jsonl

Each row: how labels were flipped, precision among the 500 most suspicious and among all flagged, recall, and the test accuracy of a
network trained on clean, flipped and cleaned labels. `--network probe` fits a linear head in seconds, `airnet` trains by steps.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import DatasetSplits, ImageDataset, load_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.evaluation.label_check.confident_learning import wrong_labels
from cifar_ray.evaluation.label_check.labelled_pictures import LabelledPictures
from cifar_ray.evaluation.label_check.out_of_fold import judge
from cifar_ray.recipes import get_recipe
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.probe.extraction import extract
from cifar_ray.training.probe.head import assign_folds, fit_head
from cifar_ray.training.probe.linear_probe import open_backbone

Integers = npt.NDArray[np.int64]

# airplane→ship, automobile→truck, bird→airplane, cat→dog, deer→horse, dog→cat, frog→bird, horse→deer, ship→airplane, truck→automobile
SIMILAR = np.array([8, 9, 0, 5, 7, 3, 2, 4, 0, 1])
SIZE_PX = 224


def flipped(labels: Integers, rate: float, kind: str, seed: int) -> Integers:
    """Replace a fraction `rate` of the labels by any other class (`random`) or by the most similar class (`similar`)."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), round(rate * len(labels)), replace=False)
    changed = labels.copy()
    changed[rows] = SIMILAR[labels[rows]] if kind == "similar" else (labels[rows] + rng.integers(1, 10, len(rows))) % 10
    return changed


def accuracy_of_probe(
    features: dict[str, npt.NDArray[np.float32]], splits: DatasetSplits, labels: Integers, kept: Integers, seed: int
) -> float:
    """Test accuracy of a linear head on the kept pictures."""
    mine = features["train"][kept].copy()
    head = fit_head(mine, labels[kept], 10, assign_folds(labels[kept], np.arange(len(kept)), seed, folds=2)).head
    assert splits.test is not None
    return float((head.logits(features["test"]).argmax(axis=1) == splits.test.labels).mean())


def accuracy_of_airnet(splits: DatasetSplits, labels: Integers, kept: Integers, seed: int, epochs: int) -> float:
    """Test accuracy of `airnet`, trained on the kept pictures."""
    config: TrainConfig = get_recipe("airbench94").model_copy(update={"epochs": epochs, "seed": seed, "val_fraction": 0.0})
    train = ImageDataset(splits.train.images[kept], labels[kept], splits.train.class_names)
    trainer = Trainer(config, DatasetSplits("cifar10", train, None, splits.test), torch.device("cpu"), Shard())
    for epoch in range(epochs):
        trainer.train_epoch(epoch, lambda *_: None)
    assert splits.test is not None
    return trainer.evaluate(splits.test).accuracy


def flip_and_find(
    data_dir: str, out: Path, images: int = 50_000, seeds: int = 3, network: Literal["probe", "airnet"] = "probe", epochs: int = 4
) -> None:
    """Runs all combinations; rows that the file already has are not repeated.

    Args:
        data_dir: folder of the files of CIFAR-10.
        out: file for the rows.
        images: number of training images.
        seeds: number of repetitions.
        network: network whose accuracy is measured.
        epochs: number of epochs of `airnet`.
    """
    prepare_process()
    values = get_recipe("photos").model_dump() | {"method": "probe", "val_fraction": 0.0, "test_fraction": 0.0, "dataset": "cifar10"}
    config = parse_config(TrainConfig, values | {"data_dir": data_dir, "image_size": 32})
    splits = load_splits(config)
    assert splits.test is not None
    splits = DatasetSplits("cifar10", splits.train.subset(np.arange(images)), None, splits.test)
    backbone, _ = open_backbone(config, SIZE_PX, mirror=False)
    parts = {name: LabelledPictures(DatasetSplits(name, part, None, None), SIZE_PX) for name, part in splits}
    features = extract(backbone, 1, parts)

    def accuracy(labels: Integers, kept: Integers, seed: int) -> float:
        if network == "probe":
            return accuracy_of_probe(features, splits, labels, kept, seed)
        return accuracy_of_airnet(splits, labels, kept, seed, epochs)

    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {(row["network"], row["images"], row["seed"], row["rate"], row["kind"]) for row in done}
    true, every = splits.train.labels, np.arange(images)
    for seed in range(seeds):
        clean = None
        for rate, kind in itertools.product((0.05, 0.1), ("random", "similar")):
            if (network, images, seed, rate, kind) in known:
                continue
            labels = flipped(true, rate, kind, seed)
            started = time.perf_counter()
            flagged = wrong_labels(labels, judge(features["train"], labels, 10, every, seed))
            seconds = time.perf_counter() - started
            kept = np.setdiff1d(every, flagged)
            clean = accuracy(true, every, seed) if clean is None else clean
            noisy, cleaned = accuracy(labels, every, seed), accuracy(labels, kept, seed)
            wrong = labels != true
            row = {"network": network, "images": images, "seed": seed, "rate": rate, "kind": kind, "seconds": seconds}
            row |= {"precision_500": float(wrong[flagged[:500]].mean()), "flagged": len(flagged), "precision": float(wrong[flagged].mean())}
            row |= {"recall": float(wrong[flagged].sum() / wrong.sum()), "clean": clean, "noisy": noisy, "cleaned": cleaned}
            row |= {"regained": (cleaned - noisy) / (clean - noisy) if clean > noisy else None}
            print(json.dumps(row), flush=True)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")

"""Flip labels of CIFAR-10's training images and look for them again, as `check_labels` does.

    python benchmarks/label_errors.py --data-dir DIR --out rows.jsonl

Each row: how labels were flipped, precision among the 500 most suspicious and among all flagged, recall, and the test accuracy of a
network trained on clean, flipped and cleaned labels. `--network probe` fits a linear head in seconds, `airnet` trains by steps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import DatasetSplits, ImageDataset, load_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.evaluation.label_check.labelled_pictures import LabelledPictures
from cifar_ray.evaluation.label_check.out_of_fold import OutOfFold, predict_out_of_fold
from cifar_ray.evaluation.label_check.suspects import wrong_labels
from cifar_ray.recipes import get_recipe
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.probe.extraction import extract
from cifar_ray.training.probe.head import assign_folds, fit_head
from cifar_ray.training.probe.linear_probe import open_backbone

Integers = npt.NDArray[np.int64]

# airplane→ship, automobile→truck, bird→airplane, cat→dog, deer→horse, dog→cat, frog→bird, horse→deer, ship→airplane, truck→automobile
SIMILAR = np.array([8, 9, 0, 5, 7, 3, 2, 4, 0, 1])
SIZE_PX = 128


def flipped(labels: Integers, rate: float, kind: str, seed: int) -> Integers:
    """Labels with a share of wrong ones: of any other class (`random`) or of the most similar one (`similar`)."""
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
    head = fit_head(mine, labels[kept], 10, assign_folds(labels[kept], np.arange(len(kept)), seed)).head
    assert splits.test is not None
    return float((head.logits(features["test"]).argmax(axis=1) == splits.test.labels).mean())


def accuracy_of_airnet(splits: DatasetSplits, labels: Integers, kept: Integers, seed: int, epochs: int) -> float:
    """Test accuracy of `airnet`, trained on the kept pictures."""
    config: TrainConfig = get_recipe("airbench94").model_copy(update={"epochs": epochs, "seed": seed, "val_fraction": 0.0})
    train = ImageDataset(splits.train.images[kept], labels[kept], splits.train.class_names)
    trainer = Trainer(config, DatasetSplits("cifar10", train, None, splits.test), torch.device("cpu"), Shard())
    for epoch in range(epochs):
        trainer.train_epoch(epoch)
    assert splits.test is not None
    return trainer.evaluate(splits.test).accuracy


def main() -> None:
    """Run all combinations; rows that the file already has are not repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--network", choices=("probe", "airnet"), default="probe")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    prepare_process()
    values = get_recipe("photos").model_dump() | {"method": "probe", "val_fraction": 0.0, "test_fraction": 0.0, "dataset": "cifar10"}
    config = parse_config(TrainConfig, values | {"data_dir": arguments.data_dir, "image_size": 32})
    splits = load_splits(config)
    train = LabelledPictures(DatasetSplits("cifar10", splits.train, None, None), SIZE_PX)
    assert splits.test is not None
    test = LabelledPictures(DatasetSplits("cifar10", splits.test, None, None), SIZE_PX)
    started = time.perf_counter()
    backbone, _ = open_backbone(config, SIZE_PX, mirror=False)
    features = extract(backbone, 1, {"train": train, "test": test})
    print(f"features: {time.perf_counter() - started:.0f} s", flush=True)
    every = np.arange(len(train))

    def accuracy(labels: Integers, kept: Integers, seed: int) -> float:
        if arguments.network == "probe":
            return accuracy_of_probe(features, splits, labels, kept, seed)
        return accuracy_of_airnet(splits, labels, kept, seed, arguments.epochs)

    done = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    for seed in range(arguments.seeds):
        clean = None
        for rate in (0.05, 0.1):
            for kind in ("random", "similar"):
                if any((row["seed"], row["rate"], row["kind"], row["network"]) == (seed, rate, kind, arguments.network) for row in done):
                    continue
                labels = flipped(splits.train.labels, rate, kind, seed)
                noisy = DatasetSplits("cifar10", ImageDataset(splits.train.images, labels, splits.train.class_names), None, None)
                started = time.perf_counter()
                found: OutOfFold = predict_out_of_fold(
                    LabelledPictures(noisy, SIZE_PX), config.model_copy(update={"seed": seed}), None, lambda *_: lambda _: None
                )
                flagged = wrong_labels(labels, found.probabilities)
                seconds = time.perf_counter() - started
                wrong = labels != splits.train.labels
                kept = np.setdiff1d(every, flagged)
                clean = accuracy(splits.train.labels, every, seed) if clean is None else clean
                before, after = accuracy(labels, every, seed), accuracy(labels, kept, seed)
                row = {
                    "network": arguments.network,
                    "seed": seed,
                    "rate": rate,
                    "kind": kind,
                    "precision_500": float(wrong[flagged[:500]].mean()),
                    "flagged": len(flagged),
                    "precision": float(wrong[flagged].mean()),
                    "recall": float(wrong[flagged].sum() / wrong.sum()),
                    "clean": clean,
                    "noisy": before,
                    "cleaned": after,
                    "regained": (after - before) / (clean - before) if clean > before else None,
                    "seconds": seconds,
                }
                print(json.dumps(row), flush=True)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

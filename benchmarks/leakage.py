"""How many CIFAR-10 test images are near-duplicates of training images, how long does the search take, and do people agree?

    python benchmarks/leakage.py MODEL DATA_DIR [--storage STORAGE] [--published FILE] [--rounds 3]

DATA_DIR holds the official files of CIFAR-10; all training images are searched, including those that the model held out. FILE is
`meta/duplicates_cifar10.csv` of ciFAIR (github.com/cvjena/cifair): pairs that people judged, by their numbers in the official files.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path

import torch

from cifar_ray.config import TrainConfig, default_storage
from cifar_ray.data import load_splits
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.evaluation.measures import leakage
from cifar_ray.evaluation.measures.leakage import Duplicate
from cifar_ray.evaluation.scoring import embed_all
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import load_model

THRESHOLDS = (0.60, 0.65, 0.70, 0.75, 0.80)
SAME_SHOT = ("0", "1")  # exact and near-duplicates; 2 is another shot, very similar


def main() -> None:
    """Searches and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data_dir")
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--published", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    predictor = Predictor(load_model(options.model, options.storage), engine="torch")
    splits = load_splits(TrainConfig(dataset="cifar10", data_dir=options.data_dir, val_fraction=0))
    for _ in range(options.rounds):
        search(predictor, splits)
    if options.published:
        leakage.THRESHOLD = min(THRESHOLDS)
        compare(search(predictor, splits), splits, options.published)


def search(predictor: Predictor, splits: DatasetSplits) -> list[Duplicate]:
    """The near-duplicates, and their number and the time in the output."""
    assert splits.test is not None
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    embeddings = embed_all(predictor, splits.test.images), embed_all(predictor, splits.train.images)
    embedded_s = time.perf_counter() - started_s
    found = leakage.find_duplicates(splits.test.images, splits.train.images, embeddings)
    seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    mirrored = sum(one.mirrored for one in found)
    print(
        f"{len(splits.test):,} × {len(splits.train):,} images, threshold {leakage.THRESHOLD:.2f}: {len(found)} duplicates "
        f"({100 * (len(found) / len(splits.test)):.2f} %), {mirrored} of them mirrored, {other_label(found, splits)} with another label; "
        f"{seconds:.1f} s ({embedded_s:.1f} s of it embedding), {cpu_s:.0f} s of CPU, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return found


def compare(found: list[Duplicate], splits: DatasetSplits, published: Path) -> None:
    """A table of thresholds beside the published list."""
    with published.open(newline="") as file:
        rows = list(csv.DictReader(file))
    listed = {int(row["TestID"]) for row in rows}
    same_shot = {int(row["TestID"]) for row in rows if row["Judgment"] in SAME_SHOT}
    print(f"published: {len(listed)} test images, {len(same_shot)} of them the same shot")
    print("| threshold | found | on the list | found of the same shots | with another label |\n|---|---|---|---|---|")
    for threshold in THRESHOLDS:
        above = [one for one in found if one.similarity >= threshold]
        queries = {one.query for one in above}
        part = f"{len(queries & same_shot)} of {len(same_shot)}, {100 * len(queries & same_shot) / len(same_shot):.0f} %"
        print(f"| {threshold:.2f} | {len(above)} | {len(queries & listed)} | {part} | {other_label(above, splits)} |")


def other_label(found: list[Duplicate], splits: DatasetSplits) -> int:
    """How many pairs have different labels."""
    assert splits.test is not None
    return sum(bool(splits.test.labels[one.query] != splits.train.labels[one.reference]) for one in found)


if __name__ == "__main__":
    main()

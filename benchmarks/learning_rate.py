"""Is the learning rate that find_lr suggests near the best one? Compare it with a sweep of short trainings.

    python benchmarks/learning_rate.py small_cnn --data-dir DIR --epochs 4 --seeds 3
    python benchmarks/learning_rate.py airbench94 --data-dir DIR --epochs 3 --batch-size 500 --factors 0.1 0.3 1 3

DIR holds the CIFAR-10 images as train/<class>/… and test/<class>/…. Both use the same subset of the training images. The sweep uses the
recipe's own schedule, with its learning rates times each factor. Prints the validation accuracy of each rate, and best rate ÷ suggestion.
"""

from __future__ import annotations

import statistics
import sys
from typing import Annotated

import numpy as np
import torch
import tyro

from cifar_ray import cli
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import load_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import TrainingError
from cifar_ray.recipes import get_recipe
from cifar_ray.training.loop.fit import fit
from cifar_ray.tuning.lr_range import run_range_test

CPU = torch.device("cpu")


def main(
    recipe: tyro.conf.Positional[str],
    data_dir: str,
    epochs: int = 4,
    batch_size: int | None = None,
    images: Annotated[int, tyro.conf.arg(help="of the training split that are used")] = 10_000,
    factors: Annotated[tuple[float, ...], tyro.conf.arg(help="of the recipe's rates")] = (0.03, 0.1, 0.3, 1, 3, 10),
    seeds: int = 1,
) -> int:
    """Prints suggestions, then the sweep."""
    values = get_recipe(recipe).model_dump() | {
        "dataset": "folder",
        "data_dir": data_dir,
        "epochs": epochs,
        "test_time_augmentation": "none",
    }
    config = parse_config(TrainConfig, values | ({"batch_size": batch_size} if batch_size else {}))
    splits = subset(load_splits(config), images)
    base = config.optimizer.lr
    edges = []
    for seed in range(seeds):
        seeded = config.model_copy(update={"seed": seed})
        test = run_range_test(seeded, splits, device=CPU, lowest=base * 1e-3, highest=base * 100, steps=100, on_step=lambda *_: None)
        edges.append(test.edge)
        print(f"seed {seed}: edge {test.edge:.3g}, steepest {test.steepest:.3g}, valley {test.valley:.3g}", flush=True)
    accuracies = {factor: [accuracy(config, splits, factor, seed) for seed in range(seeds)] for factor in factors}
    for factor, found in accuracies.items():
        print(f"rate {base * factor:.3g}: {100 * statistics.mean(found):.2f} %  ({', '.join(f'{100 * value:.2f} %' for value in found)})")
    best = base * max(accuracies, key=lambda factor: statistics.mean(accuracies[factor]))
    print(f"best {best:.3g}, suggestion {statistics.median(edges):.3g}, best ÷ suggestion {best / statistics.median(edges):.2f}")
    return 0


def subset(splits: DatasetSplits, images: int) -> DatasetSplits:
    """Some of the training images, and the validation images."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(splits.train))[:images])
    return DatasetSplits(splits.name, splits.train.subset(chosen), splits.val, None)


def accuracy(config: TrainConfig, splits: DatasetSplits, factor: float, seed: int) -> float:
    """Validation accuracy of a short training at `factor` times the recipe's rates; 0 if it diverges."""
    rates = {name: getattr(config.optimizer, name) * factor for name in ("lr", "head_lr", "bias_lr")}
    changed = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=rates), "seed": seed})
    try:
        result = fit(changed, splits, device=CPU, shard=Shard(), on_step=lambda *_: None, on_epoch=lambda *_: None)
    except TrainingError:
        return 0.0
    return result.metrics["val_accuracy"]


if __name__ == "__main__":
    sys.exit(cli.run(lambda: tyro.cli(main)))

"""How accurate is the default recipe on CIFAR-10, how long does it take, and is it faster than a bare PyTorch loop?

    python benchmarks/default_recipe.py accuracy --data-dir DIR --seeds 2 [--val-fraction 0]
    python benchmarks/default_recipe.py speed --data-dir DIR --rounds 3

DIR holds the official files of CIFAR-10. `accuracy` trains as the command line does, through
Ray Train, once per seed. `speed` alternates our loop and a bare port of the recipe (no Ray, whole batches of 2,000, images
kept normalised in float32) on the same cores, A B A B, and prints images/s and their ratio.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from cifar_ray.cli.output.training_progress import ConsoleProgress
from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import load_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.models import create_model
from cifar_ray.training.loop.optimizers import create_optimizers, set_learning_rate
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.on_ray.ray_trainer import train_on_ray
from cifar_ray.training.records.run_folder import Run

BATCH_SIZE = 2000
STEPS_A_ROUND = 4


def main(
    measure: tyro.conf.Positional[Literal["accuracy", "speed"]],
    data_dir: str,
    seeds: int = 2,
    rounds: int = 3,
    val_fraction: float = 0.0,
    threads: Annotated[int, tyro.conf.arg(help="of the speed measurement")] = 2,
) -> int:
    """Measures and prints one table."""
    values = {"dataset": "cifar10", "data_dir": data_dir, "val_fraction": val_fraction}
    config = parse_config(TrainConfig, values)
    splits = load_splits(config)
    if measure == "accuracy":
        report_accuracy(config, splits, seeds)
    else:
        prepare_process(threads)
        report_speed(config, splits, rounds)
    return 0


def report_accuracy(config: TrainConfig, splits: DatasetSplits, seeds: int) -> None:
    """Train once per seed; print the figures of each run and their mean."""
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as storage:
            job = config.model_copy(update={"seed": seed, "storage": storage, "name": f"seed-{seed}"})
            run = train_on_ray(Run(job), ConsoleProgress(job.epochs, len(splits.train)))
        metrics = run.result.metrics
        training_s = sum(len(splits.train) / report.images_per_s for report in run.history)
        rows.append((100 * metrics["test_accuracy"], 100 * metrics["test_accuracy_tta"], training_s, run.result.train_seconds))
        print(f"seed {seed}: test {rows[-1][0]:.2f} %, views averaged {rows[-1][1]:.2f} %, steps {training_s:.0f} s", flush=True)
    for label, column in zip(("test %", "views averaged %", "training steps s", "with evaluation s"), zip(*rows, strict=True), strict=True):
        spread = f" ± {statistics.stdev(column):.2f} (sd)" if seeds > 1 else ""
        print(f"{label:18} {statistics.mean(column):8.2f}{spread}  n = {seeds}")


def report_speed(config: TrainConfig, splits: DatasetSplits, rounds: int) -> None:
    """Alternates both loops and prints images/s of each round and the ratio."""
    ours, bare = OurLoop(config, splits), BareLoop(splits)
    ratios = []
    for number in range(rounds + 1):
        rates = [BATCH_SIZE * STEPS_A_ROUND / timed(loop.steps) for loop in (ours, bare)]
        if number == 0:
            continue  # warm-up
        ratios.append(rates[0] / rates[1])
        print(f"round {number}: ours {rates[0]:.0f} images/s, bare loop {rates[1]:.0f} images/s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"ratio {statistics.mean(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}), n = {rounds}")


def timed(run: object) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - started


class OurLoop:
    """The trainer that `python -m cifar_ray.train` runs."""

    def __init__(self, config: TrainConfig, splits: DatasetSplits) -> None:
        self.trainer = Trainer(config, splits, torch.device("cpu"), Shard())
        self.trainer.parallel.train()
        self.batches = self.trainer.loader.epoch(0)

    def steps(self) -> None:
        """A few training steps."""
        for _ in range(STEPS_A_ROUND):
            self.trainer.train_step(next(self.batches))


class BareLoop:
    """The recipe in its simplest form: whole batches, images normalised and padded once, shifted by slices."""

    def __init__(self, splits: DatasetSplits) -> None:
        images = torch.from_numpy(splits.train.images).permute(0, 3, 1, 2).float() / 255
        mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
        normalized = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        self.padded = F.pad(normalized, (2, 2, 2, 2), "reflect")
        self.labels = torch.from_numpy(splits.train.labels)
        self.model = create_model("airnet", 10, 32).to(memory_format=torch.channels_last).train()
        self.model.initialize_from(normalized[:5000])
        self.optimizers = create_optimizers(self.model, TrainConfig().optimizer, BATCH_SIZE)
        self.order = torch.randperm(len(self.labels)).split(BATCH_SIZE)
        self.done = 0

    def steps(self) -> None:
        """A few training steps."""
        for _ in range(STEPS_A_ROUND):
            indices = self.order[self.done % len(self.order)]
            self.done += 1
            inputs = crop(self.padded[indices])
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.model(inputs)
            F.cross_entropy(logits.float(), self.labels[indices], label_smoothing=0.2).backward()
            set_learning_rate(self.optimizers, 1 - self.done / 200)
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.zero_grad(set_to_none=True)


def crop(padded: Tensor) -> Tensor:
    """Cut a random 32×32 window from each 36×36 image, and mirror half of the images."""
    result = torch.empty(len(padded), 3, 32, 32).contiguous(memory_format=torch.channels_last)
    shifts = torch.randint(0, 5, (len(padded), 2))
    for top in range(5):
        for left in range(5):
            mask = (shifts[:, 0] == top) & (shifts[:, 1] == left)
            result[mask] = padded[mask, :, top : top + 32, left : left + 32]
    mirrored = torch.rand(len(padded)) < 0.5
    return torch.where(mirrored[:, None, None, None], result.flip(3), result)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))

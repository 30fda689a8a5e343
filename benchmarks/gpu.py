"""The checks of `benchmarks/gpu.sh`; each ends with a summary of one line. Without a GPU, they run on the CPU.

python benchmarks/gpu.py precision DIR [--precision bf16] [--images N]    does it learn, and how fast
python benchmarks/gpu.py time DIR [--seeds 10] [--images N] [--compile MODE] [--cuda-graph MODE]    accuracy and time, without Ray
python benchmarks/gpu.py forward                                          forward passes of a server: CUDA graphs beside plain torch
python benchmarks/gpu.py collective                                       NCCL, or gloo
python benchmarks/gpu.py peer-data DIR OUT                                the same images as the files that airbench reads
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from cifar_ray.config import PRETRAINED_MODEL, TrainConfig, parse_config
from cifar_ray.data import load_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.inference.engines.choice import choose
from cifar_ray.inference.engines.conversion import NetworkInput
from cifar_ray.inference.engines.engine import TorchEngine
from cifar_ray.models import DataInitialized, create_model
from cifar_ray.models.precision import Precision
from cifar_ray.training.loop.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = 0.94
STEM_IMAGES = 5000
REPEATS = 20


def main() -> None:
    """Runs one check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=["precision", "time", "forward", "collective", "peer-data"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="none")
    parser.add_argument("--cuda-graph", default="auto")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--images", type=int, help="only so many of the training images")
    options = parser.parse_args()
    if options.check == "collective":
        collective()
        return
    if options.check == "forward":
        forward()
        return
    values = {
        "dataset": "folder",
        "data_dir": options.folder,
        "val_fraction": 0,
        "precision": options.precision,
        "compile": options.compile,
        "cuda_graph": options.cuda_graph,
    }
    config = parse_config(TrainConfig, values)
    splits = shortened(load_splits(config), options.images)
    if options.check == "peer-data":
        write_peer_data(splits, options.out)
    elif options.check == "precision":
        learn(config, splits)
    else:
        time_to_accuracy(config, splits, options.seeds)


def shortened(splits: DatasetSplits, images: int | None) -> DatasetSplits:
    """Keep only the first `images` training images, and as many test images."""
    if images is None or splits.test is None:
        return splits
    train, test = (ImageDataset(part.images[:images], part.labels[:images], part.class_names) for part in (splits.train, splits.test))
    return DatasetSplits(splits.name, train, None, test)


def run(config: TrainConfig, splits: DatasetSplits) -> tuple[float, float, float]:
    """Run a whole training and evaluate it.

    Returns:
        Seconds from initializing the stem to the last prediction, as airbench measures: images are already on the device, and the network
        is compiled; test accuracy with test-time augmentation, 0–1; images per second of the last epoch.
    """
    assert splits.test is not None
    trainer = Trainer(config, splits, DEVICE, Shard(), on_message=print)
    synchronize()
    started = time.perf_counter()
    if isinstance(trainer.model, DataInitialized):  # initialized again, so that its time counts
        trainer.model.initialize_from(trainer.normalization(trainer.loader.sample(STEM_IMAGES)))
    for epoch in range(config.epochs):
        begun = time.perf_counter()
        trainer.train_epoch(epoch, lambda *_: None)
        synchronize()
        rate = len(splits.train) / (time.perf_counter() - begun)
    accuracy = trainer.evaluate(splits.test, config.test_time_augmentation).accuracy
    return time.perf_counter() - started, accuracy, rate


def learn(config: TrainConfig, splits: DatasetSplits) -> None:
    """Check that two epochs reach at least twice the accuracy of guessing."""
    seconds, accuracy, rate = run(config.model_copy(update={"epochs": 2}), splits)
    print(f"{config.precision} on {DEVICE}: {100 * accuracy:.2f} % after 2 epochs in {seconds:.1f} s, {rate:,.0f} images/s")
    if accuracy < 2 / splits.train.num_classes:
        raise SystemExit(f"it does not learn: {100 * accuracy:.2f} %")


def time_to_accuracy(config: TrainConfig, splits: DatasetSplits, seeds: int) -> None:
    """Run the whole recipe once per seed, after a warm-up run that is not counted."""
    runs = []
    for seed in range(-1, seeds):
        runs.append(run(config.model_copy(update={"seed": seed % 2**31}), splits))
        print(f"seed {seed}: {runs[-1][0]:.2f} s, {100 * (runs[-1][1]):.2f} %, {runs[-1][2]:,.0f} images/s", flush=True)
    seconds, accuracies, rates = zip(*runs[1:], strict=True)
    spread = statistics.stdev(seconds) if seeds > 1 else 0.0
    reached = sum(accuracy >= TARGET for accuracy in accuracies)
    print(
        f"{statistics.mean(seconds):.2f} s (sd {spread:.2f}), {100 * statistics.mean(accuracies):.2f} % "
        f"({100 * min(accuracies):.2f}–{100 * max(accuracies):.2f} %; {reached} of {seeds} reach {100 * TARGET:.0f} %), "
        f"{statistics.mean(rates):,.0f} images/s on {DEVICE}"
    )


def forward() -> None:
    """Time forward passes with copies from and to the host: the engine that a server chooses beside plain torch, in turn."""
    lines = []
    for name, side in (("airnet", 32), (PRETRAINED_MODEL, 224)):
        network = create_model(name, num_classes=10, image_size=side).to(DEVICE).to(memory_format=torch.channels_last).eval()
        plain = TorchEngine(network, NetworkInput(side, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), Precision.resolve("auto", DEVICE))
        engine, reason = choose(plain, "auto")
        print(f"{name}: {engine.name}, because {reason}")
        times = []
        for count in (1, 8, 32, 128):
            images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
            best = [math.inf, math.inf]
            for _ in range(REPEATS):
                for number, one in enumerate((plain, engine)):
                    started = time.perf_counter()
                    one.outputs(images)
                    best[number] = min(best[number], time.perf_counter() - started)
            times.append(f"{count}: {1e3 * best[0]:.2f} → {1e3 * best[1]:.2f}")
        lines.append(f"{name}, torch → {engine.name}, ms by batch size: {', '.join(times)}")
    print("; ".join(lines))


def collective() -> None:
    """All-reduce over a group of one: tests that the library loads and finds its device."""
    backend = "nccl" if DEVICE.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method="tcp://127.0.0.1:29555", rank=0, world_size=1)
    value = torch.ones(1 << 20, device=DEVICE)
    dist.all_reduce(value)
    synchronize()
    dist.destroy_process_group()
    print(f"{backend}: sum of one worker {value.mean().item():g}")


def write_peer_data(splits: DatasetSplits, folder: Path) -> None:
    """`cifar10/train.pt` and `test.pt` as airbench writes them after its download: uint8 images `[N, H, W, 3]`, labels, class names."""
    target = folder / "cifar10"
    target.mkdir(parents=True, exist_ok=True)
    for name, part in splits:
        values = {"images": torch.tensor(part.images), "labels": torch.tensor(part.labels), "classes": list(part.class_names)}
        torch.save(values, target / f"{name}.pt")
    print(f"{target}: {', '.join(f'{len(part):,} {name}' for name, part in splits)}")


def synchronize() -> None:
    """Waits for the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

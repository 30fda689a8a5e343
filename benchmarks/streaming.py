"""Training on streamed pictures: how much memory does it need, and how fast is it, compared with pictures held in memory?

    python benchmarks/streaming.py memory --gigabytes 5   # one epoch over synthetic pictures; memory of every process of the job
    python benchmarks/streaming.py speed --gigabytes 0.3 --width-px 320 --image-size 64   # held, streamed, held, streamed …

The pictures are created under $TMPDIR and removed at the end. Results in results/streaming.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from PIL import Image
from ray.train.torch import TorchTrainer

from cifar_ray.cluster.connection import ray_cluster
from cifar_ray.cluster.plan import WorkerPlan
from cifar_ray.config import TrainConfig
from cifar_ray.data import StreamedImages, StreamedSplits, load_splits, open_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.recipes import small_cnn
from cifar_ray.training.loop.trainer import Trainer
from cifar_ray.training.on_ray.ingest import fed_by_ray, stream

_CLASSES = 4
_DISTINCT = 64  # number of different pictures; the other files are copies with other bytes after the end of the picture
_STORE = "object store (pages of the raylet)"
_RUN = ("--dataset", "folder", "--recipe", "small_cnn", "--batch-size", "128", "--test-time-augmentation", "none", "--promote", "never")


def make_tree(root: Path, total_bytes: int, width_px: int) -> int:
    """Write JPEGs of smooth colours with noise, similar to photos; returns the number of files."""
    rng = np.random.default_rng(0)
    size = (width_px, width_px * 3 // 4)
    encoded = []
    for _ in range(_DISTINCT):
        soft = Image.fromarray(rng.integers(0, 256, (size[1] // 32, size[0] // 32, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noisy = np.asarray(soft) + rng.normal(0, 14, (size[1], size[0], 3))
        file = BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=100, subsampling=0)
        encoded.append(file.getvalue())
    written = count = 0
    while written < total_bytes:
        folder = root / f"class{count % _CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        data = encoded[count % _DISTINCT] + count.to_bytes(8, "big")
        (folder / f"{count:06}.jpg").write_bytes(data)
        written, count = written + len(data), count + 1
    return count


def train(tree: Path, work: Path, *flags: str) -> subprocess.Popen[str]:
    """Starts a training as a user does."""
    command = [sys.executable, "-m", "cifar_ray.train", *_RUN, "--data-dir", str(tree), "--storage", str(work / "storage"), *flags]
    environment = os.environ | {"CIFAR_RAY_CACHE": str(work / "cache")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def private_bytes(process: psutil.Process) -> tuple[str, int, int]:
    """Kind of a process, its private memory, and its shared memory, mostly pages of Ray's object store that it touched, in bytes."""
    command = " ".join(process.cmdline())
    named = re.match(r"ray::[A-Za-z_]+", command)
    kind = named[0] if named else "raylet" if "raylet/raylet" in command else "other"
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(("Private_Clean", "Private_Dirty")))
    return kind, private * 1024, process.memory_info().shared


def memory(arguments: argparse.Namespace, work: Path) -> None:
    """Peak memory by kind of process, over preparation and one epoch."""
    count = make_tree(work / "tree", int(arguments.gigabytes * 1e9), arguments.width_px)
    print(f"{count:,} pictures of {arguments.width_px} px wide, {arguments.gigabytes:g} GB", flush=True)
    budget = ("--image-size", str(arguments.image_size), "--data-memory", arguments.budget, "--epochs", "1", "--name", "memory")
    start_s = time.perf_counter()
    job = train(work / "tree", work, *budget, "--num-workers", str(arguments.num_workers))
    peaks: dict[str, int] = defaultdict(int)
    most: dict[str, int] = defaultdict(int)
    try:
        while job.poll() is None:
            now: dict[str, list[int]] = defaultdict(list)
            for process in [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]:
                try:
                    kind, private, shared = private_bytes(process)
                except (psutil.Error, OSError, IndexError):
                    continue  # it has just ended
                now["driver" if process.pid == job.pid else kind].append(private)
                if kind == "raylet":
                    peaks[_STORE] = max(peaks[_STORE], shared)
            for kind, values in now.items():
                peaks[kind] = max(peaks[kind], *values)
                most[kind] = max(most[kind], len(values))
            time.sleep(0.5)
    finally:
        assert job.stdout is not None
        print(job.stdout.read(), f"{time.perf_counter() - start_s:.0f} s in all", sep="")
        for kind, peak in sorted(peaks.items(), key=lambda item: -item[1]):
            print(f"{kind:40} {peak / 1e6:8,.0f} MB at most each, up to {most[kind]} at a time")


def speed(arguments: argparse.Namespace, work: Path) -> None:
    """Images per second of whole epochs in one Ray Train worker, held and streamed in turn."""
    count = make_tree(work / "few", int(arguments.gigabytes * 1e9), arguments.width_px)
    os.environ["CIFAR_RAY_CACHE"] = str(work / "cache")
    settings = {"dataset": "folder", "data_dir": str(work / "few"), "image_size": arguments.image_size, "batch_size": 128}
    config = small_cnn().model_copy(update=settings | {"num_workers": 1})
    splits = open_splits(config.model_copy(update={"stream": "always"}))
    assert isinstance(splits.train, StreamedImages)
    print(f"{count:,} pictures of {arguments.width_px} px wide, {len(splits.train):,} to train on at {arguments.image_size} px", flush=True)
    with ray_cluster():
        cpus = ray.cluster_resources()["CPU"]
        plan, ingest = stream(splits.train, config, WorkerPlan(1, cpus, use_gpu=False), cpus)
        job = {"config": config.model_dump(mode="json"), "rounds": arguments.rounds, "threads": (int(cpus), int(plan.cpus))}
        run_config = ray.train.RunConfig(name="speed", storage_path=str(work / "storage"))
        trainer = TorchTrainer(take_turns, train_loop_config=job, scaling_config=plan.scaling_config(), run_config=run_config, **ingest)
        found: dict[str, list[float]] = trainer.fit().return_value
    for name, rates in found.items():
        print(f"{name}: {statistics.mean(rates):.0f} images/s, sd {statistics.stdev(rates):.0f}, each {[round(rate) for rate in rates]}")
    held = next(iter(found.values()))
    for name, rates in list(found.items())[1:]:
        ratios = [rate / best for rate, best in zip(rates, held, strict=True)]
        print(f"{name} / held: {statistics.mean(ratios):.2f}, sd {statistics.stdev(ratios):.2f}, n = {len(ratios)}")


def take_turns(job: dict[str, Any]) -> dict[str, list[float]]:
    """Runs in the worker: epochs of each kind in turn; the first epoch of each kind, which starts processes, is not counted."""
    config = TrainConfig.model_validate(job["config"])
    all_cpus, some_cpus = job["threads"]
    splits = open_splits(config.model_copy(update={"stream": "always"}))
    assert isinstance(splits, StreamedSplits)
    here, streamed = splits, fed_by_ray(splits)
    kinds: dict[str, tuple[TrainingSplits, int]] = {
        f"held, {all_cpus} threads": (load_splits(config), all_cpus),
        f"streamed, {some_cpus} threads": (streamed, some_cpus),
        f"streamed, {all_cpus} threads": (streamed, all_cpus),
        f"decoded by the worker itself, {all_cpus} threads": (here, all_cpus),
    }
    trainers = {name: Trainer(config, data, torch.device("cpu"), Shard()) for name, (data, _) in kinds.items()}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for epoch in range(job["rounds"] + 1):
        for name, (_, threads) in kinds.items():
            torch.set_num_threads(threads)
            start_s = time.perf_counter()
            trainers[name].train_epoch(epoch, lambda *_: None)
            rates[name].append(len(trainers[name].loader) / (time.perf_counter() - start_s))
    return {name: found[1:] for name, found in rates.items()}


def main() -> None:
    """Run one of the two benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("memory", "speed"))
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--width-px", type=int, default=640)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--budget", default="500MB")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="streaming-"))
    try:
        {"memory": memory, "speed": speed}[arguments.question](arguments, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

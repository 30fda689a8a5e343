"""Time that workers on this machine spend on exchanging gradients: all-reduce alone, and in steps of our trainer."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from cifar_ray.cluster.process import prepare_process
from cifar_ray.data.batches.loader import Step
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.recipes import get_recipe, list_recipes
from cifar_ray.training.loop.trainer import Trainer

Figures = dict[str, Any]

WORKERS = (1, 2, 4, 8)
LATENCY_BYTES = (16, 4096, 65_536, 1 << 20)  # in addition to the gradients of the recipes
STEP_BATCHES = {
    "small_cnn": 512,
    "airbench94": 512,
    "resnet9_onecycle": 64,
}  # images over all workers, so that a step takes a second or less
_MIN_S, _MIN_TIMES = 1.0, 5


def all_reduce_alone() -> list[Figures]:
    """Times of all-reduce over 2, 4 and 8 processes that do nothing else, for the gradients of each recipe and a few small tensors."""
    sizes = sorted({*LATENCY_BYTES, *(4 * recipe.parameters for recipe in list_recipes().values())})
    return [row for workers in WORKERS[1:] for row in _on_workers(_all_reduces, workers, sizes)]


def steps(recipe: str, rounds: int) -> Iterator[Figures]:
    """Times of whole training steps, with and without the exchange of gradients in turn, for each number of workers."""
    return (_on_workers(_steps, workers, recipe, rounds) for workers in WORKERS)


def _on_workers(task: Callable[..., Any], workers: int, *arguments: Any) -> Any:
    """Run `task` in `workers` processes with one thread each; return the result of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (workers, folder, task, arguments), nprocs=workers)
        return torch.load(Path(folder, "result"), weights_only=True)


def _worker(rank: int, workers: int, folder: str, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    prepare_process(1)
    result = task(rank, workers, *arguments)
    if rank == 0:
        torch.save(result, Path(folder, "result"))
    dist.barrier()
    dist.destroy_process_group()


def _all_reduces(rank: int, workers: int, sizes: list[int]) -> list[Figures]:
    del rank
    return [_all_reduce(workers, size) for size in sizes]


def _all_reduce(workers: int, size: int) -> Figures:
    values = torch.ones(size // 4)
    dist.all_reduce(values)
    seconds: list[float] = []
    dist.barrier()
    sent = _loopback_bytes()
    while not _broadcast_decision(sum(seconds) > _MIN_S and len(seconds) >= _MIN_TIMES):
        values.fill_(1.0)
        seconds.append(_slowest(dist.all_reduce, values))
    dist.barrier()
    sent_each = (_loopback_bytes() - sent) / len(seconds)
    return {"workers": workers, "bytes": size, "loopback_bytes": sent_each} | _spread(seconds)


def _steps(rank: int, workers: int, recipe: str, rounds: int) -> Figures:
    trainer = _trainer(rank, workers, recipe)
    alone, together = trainer.model, trainer.parallel
    passes = {"alone": alone, "together": together}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    epochs = iter(step for epoch in range(1_000_000) for step in trainer.loader.epoch(epoch))
    for _ in range(rounds + 2):  # two warm-up steps: DDP orders its buckets, and memory is allocated
        for name, network in passes.items():
            trainer.parallel = network
            seconds[name].append(_slowest(trainer.train_step, next(epochs)))
    trainer.parallel = together
    exchanged_s, calls = _profiled(trainer, next(epochs))
    figures = {name: _spread(times[2:]) for name, times in seconds.items()}
    gradients = sum(4 * weights.numel() for weights in alone.parameters() if weights.requires_grad)
    return {"recipe": recipe, "workers": workers, "bytes": gradients, "exchanged_s": exchanged_s, "calls": calls} | figures


def _trainer(rank: int, workers: int, recipe: str) -> Trainer:
    batch_size = STEP_BATCHES[recipe]
    config = get_recipe(recipe).model_copy(update={"batch_size": batch_size})
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4 * batch_size, 32, 32, 3), dtype=np.uint8)
    train = ImageDataset(pixels, rng.integers(0, 10, len(pixels)), tuple(f"class {number}" for number in range(10)))
    return Trainer(config, DatasetSplits("made up", train, None, None), torch.device("cpu"), Shard(rank, workers))


def _profiled(trainer: Trainer, step: Step) -> tuple[float, int]:
    """Seconds of all-reduce in one step, and the number of all-reduces, which is the number of DDP's buckets."""
    dist.barrier()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        trainer.train_step(step)
    rows = [row for row in recorded.key_averages() if row.key == "gloo:all_reduce"]
    return sum(row.cpu_time_total for row in rows) / 1e6, sum(row.count for row in rows)


def _slowest(action: Callable[..., object], *arguments: object) -> float:
    """Seconds until the last worker is done; all workers start together."""
    dist.barrier()
    started = time.perf_counter()
    action(*arguments)
    taken = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


def _broadcast_decision(decision: bool) -> bool:
    """Broadcast the decision of rank 0."""
    shared = torch.tensor(int(decision))
    dist.broadcast(shared, 0)
    return bool(shared)


def _spread(seconds: list[float]) -> Figures:
    quartiles = statistics.quantiles(seconds, n=4)
    return {"n": len(seconds), "median_s": quartiles[1], "low_s": quartiles[0], "high_s": quartiles[2], "least_s": min(seconds)}


def _loopback_bytes() -> int:
    """Bytes sent over the loopback interface since the start of the machine, or of the network namespace."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])

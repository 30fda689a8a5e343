"""A model of the time of a training step on many workers, from counted operations and published figures of hardware.

A step computes forward, backward and the update. DDP all-reduces gradients bucket by bucket during backward. The last bucket is full only
when backward ends, so its all-reduce is not hidden. Every worker computes the whole update, so its time does not shrink with more workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from cifar_ray.recipes import get_recipe

IMAGES = 45_000  # CIFAR-10 without the tenth for validation
SMALLEST_GRADIENTS = 100_000  # bytes; every recipe has more
LAUNCH_S = 6e-6  # time in which the CPU launches a kernel in eager mode
_BYTES_PER_UPDATED_WEIGHT = 20  # weight, gradient and momentum read, weight and momentum written
_BACKWARD = 2 / 3  # share of backward in forward and backward

# Latencies in NCCL's own model (src/graph/tuning.cc): of a call, and of a hop inside a node, for a ring ("Simple") and a tree ("LL128")
_RING_S, _TREE_S = 8.4e-6, 4.4e-6
_RING_INSIDE_S, _TREE_INSIDE_S = 3.4e-6, 1.2e-6
_TREE_SPEED = 0.9 * 0.915  # bandwidth of a tree, relative to a ring


@dataclass(frozen=True)
class Cluster:
    """Nodes with GPUs.

    Attributes:
        operations_per_s: floating-point operations per second that a GPU reaches in such networks, which is below its peak.
        memory_bytes_per_s: memory bandwidth of a GPU.
        gpus: number of GPUs per node.
        inside_bytes_per_s: bandwidth of a ring between the GPUs of a node.
        between_bytes_per_s: bandwidth of a ring between nodes.
        ring_hop_s: latency between two nodes in a ring.
        tree_hop_s: latency between two nodes in a tree.
    """

    name: str
    operations_per_s: float
    memory_bytes_per_s: float
    gpus: int
    inside_bytes_per_s: float
    between_bytes_per_s: float
    ring_hop_s: float = 9.6e-6
    tree_hop_s: float = 8.5e-6

    def all_reduce_s(self, workers: int, size: float) -> float:
        """Seconds of an all-reduce of `size` bytes over all workers, by a ring or a tree, whichever is faster, as NCCL chooses."""
        if workers == 1:
            return 0.0
        nodes = math.ceil(workers / self.gpus)
        inside = min(workers, self.gpus) - 1
        speed = self.inside_bytes_per_s if nodes == 1 else min(self.inside_bytes_per_s, self.between_bytes_per_s)
        ring = (
            _RING_S + 2 * ((workers - nodes) * _RING_INSIDE_S + (nodes - 1) * self.ring_hop_s) + 2 * (workers - 1) / workers * size / speed
        )
        tree = _TREE_S + 2 * (inside * _TREE_INSIDE_S + math.log2(nodes) * self.tree_hop_s) + 2 * size / (_TREE_SPEED * speed)
        return min(ring, tree)

    def at(self, factor: float) -> Cluster:
        """A copy whose GPUs are `factor` times as fast."""
        return replace(self, operations_per_s=self.operations_per_s * factor)


H100_S, L4_S = 0.2 * 989e12, 0.3 * 121e12
CLUSTERS = (
    Cluster("H100, 400 Gbit/s a GPU", H100_S, 3.35e12, 8, 360e9, 0.8 * 8 * 50e9),
    Cluster("H100, 100 Gbit/s a node", H100_S, 3.35e12, 8, 360e9, 0.8 * 12.5e9),
    Cluster("L4, 10 Gbit/s a node", L4_S, 0.3e12, 1, math.inf, 0.8 * 1.25e9, 50e-6, 50e-6),
)


@dataclass(frozen=True)
class Network:
    """A recipe's step, as `networks.py` counts it."""

    recipe: str
    parameters: int
    kernels: int
    image_operations: int
    optimizer_kernels: int
    optimizer_operations: int
    bucket_bytes: Sequence[int]
    statistics: int

    @property
    def batch_size(self) -> int:
        """Batch size of the recipe, over all workers."""
        return get_recipe(self.recipe).batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch of CIFAR-10."""
        return math.ceil(IMAGES / self.batch_size)

    def training_s(self, cluster: Cluster) -> float:
        """Seconds of all steps of the recipe on one GPU."""
        return get_recipe(self.recipe).epochs * self.steps_per_epoch * self.step_s(cluster, 1, self.batch_size)

    def one_gpu_s(self, cluster: Cluster, images: int) -> float:
        """Seconds of a step with `images` per worker, without communication: limited by the GPU, or by the CPU that launches kernels."""
        pieces = math.ceil(images / (get_recipe(self.recipe).micro_batch_size or images))
        launches_s = LAUNCH_S * (pieces * self.kernels + self.optimizer_kernels)
        return max(launches_s, self._passes_s(cluster, images) + self._update_s(cluster))

    def step_s(self, cluster: Cluster, workers: int, images: int) -> float:
        """Seconds of a step with `images` per worker, with its share of the all-reduce of batch-norm statistics at the end of an epoch."""
        *early, last = (cluster.all_reduce_s(workers, size) for size in self.bucket_bytes)
        exposed = last + max(0.0, sum(early) - _BACKWARD * self._passes_s(cluster, images))
        epoch_end = self.statistics * cluster.all_reduce_s(workers, 1024)
        return self.one_gpu_s(cluster, images) + exposed + epoch_end / self.steps_per_epoch

    def fixed_batch(self, cluster: Cluster, workers: int) -> float | None:
        """Efficiency if the recipe's batch is divided among the workers (strong scaling); `None` for more workers than images in it."""
        if workers > self.batch_size:
            return None
        alone = self.step_s(cluster, 1, self.batch_size)
        return alone / workers / self.step_s(cluster, workers, math.ceil(self.batch_size / workers))

    def grown_batch(self, cluster: Cluster, workers: int) -> float:
        """Efficiency if each worker has the recipe's whole batch, and the data grow with the number of workers (weak scaling)."""
        return self.step_s(cluster, 1, self.batch_size) / self.step_s(cluster, workers, self.batch_size)

    def pays_up_to(self, cluster: Cluster) -> int:
        """Largest number of GPUs, a power of two up to 512, at which dividing the recipe's batch has an efficiency of at least 50 %."""
        return max(workers for workers in (2**power for power in range(10)) if (self.fixed_batch(cluster, workers) or 0) >= 0.5)

    def _passes_s(self, cluster: Cluster, images: int) -> float:
        return self.image_operations * images / cluster.operations_per_s

    def _update_s(self, cluster: Cluster) -> float:
        traffic_s = _BYTES_PER_UPDATED_WEIGHT * self.parameters / cluster.memory_bytes_per_s
        return self.optimizer_operations / cluster.operations_per_s + traffic_s


@dataclass(frozen=True)
class Loopback:
    """All-reduce between processes of one machine. They share its cores, so the bytes of all workers add up.

    Attributes:
        call_s: latency of a call, by number of workers; with more workers than cores, mostly waiting for a core.
        bytes_per_s: bandwidth of all workers together.
    """

    call_s: Mapping[int, float]
    bytes_per_s: float

    @classmethod
    def fitted(cls, rows: Sequence[dict[str, Any]]) -> Loopback:
        """Fit by least squares of relative errors, only to sizes that gradients have: small tensors behave differently."""
        rows = [row for row in rows if row["bytes"] >= SMALLEST_GRADIENTS]
        workers = sorted({row["workers"] for row in rows})
        terms = np.array([[*(float(row["workers"] == number) for number in workers), _sent(row["workers"], row["bytes"])] for row in rows])
        seconds = np.array([row["median_s"] for row in rows])
        scale = terms.max(0)
        found = nnls(terms / scale / seconds[:, None], np.ones(len(rows)))[0] / scale
        return cls(dict(zip(workers, map(float, found), strict=False)), float(1 / found[-1]))

    def all_reduce_s(self, workers: int, size: float) -> float:
        """As `Cluster.all_reduce_s`, for the measured numbers of workers."""
        return self.call_s[workers] + _sent(workers, size) / self.bytes_per_s


def _sent(workers: int, size: float) -> float:
    """Bytes that all workers of a ring send together."""
    return 2 * (workers - 1) * size

"""The time of a training step on many workers, from counts of what it consists of and from published figures of hardware.

A step computes forward, backward and the update. DDP sums gradients bucket by bucket while backward goes on, but the last bucket is full
only when backward is done, so nothing hides its sum. The update is done by every worker alike: it does not shrink.
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
SMALLEST_GRADIENTS = 100_000  # bytes; no recipe has less
LAUNCH_S = 6e-6  # of a kernel in eager mode, by the CPU
_BYTES_PER_UPDATED_WEIGHT = 20  # weight, gradient and momentum read, weight and momentum written
_BACKWARD = 2 / 3  # of forward and backward

# NCCL's own latencies (src/graph/tuning.cc): of a call, of a step of a ring ("Simple") and of a step of a tree ("LL128")
_RING_S, _TREE_S = 8.4e-6, 4.4e-6
_RING_INSIDE_S, _TREE_INSIDE_S = 3.4e-6, 1.2e-6
_TREE_SPEED = 0.9 * 0.915  # of a ring's


@dataclass(frozen=True)
class Cluster:
    """Nodes with GPUs.

    Attributes:
        operations_per_s: what a GPU reaches in such networks, not what it could.
        memory_bytes_per_s: of a GPU.
        gpus: in a node.
        inside_bytes_per_s: what a ring reaches between the GPUs of a node.
        between_bytes_per_s: what it reaches from a node to the next.
        ring_hop_s: from a node to the next, in a ring.
        tree_hop_s: the same in a tree.
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
        """Time of a sum of `size` bytes over all workers, by a ring or a tree, whichever is faster; NCCL, too, chooses so."""
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
        """The same with faster or slower GPUs."""
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
        """Of the recipe, over all workers."""
        return get_recipe(self.recipe).batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Of CIFAR-10."""
        return math.ceil(IMAGES / self.batch_size)

    def training_s(self, cluster: Cluster) -> float:
        """All steps of the recipe on one GPU."""
        return get_recipe(self.recipe).epochs * self.steps_per_epoch * self.step_s(cluster, 1, self.batch_size)

    def one_gpu_s(self, cluster: Cluster, images: int) -> float:
        """A step with so many images on each worker, without communication: bound by the GPU, or by the CPU that launches its kernels."""
        pieces = math.ceil(images / (get_recipe(self.recipe).micro_batch_size or images))
        launches_s = LAUNCH_S * (pieces * self.kernels + self.optimizer_kernels)
        return max(launches_s, self._passes_s(cluster, images) + self._update_s(cluster))

    def step_s(self, cluster: Cluster, workers: int, images: int) -> float:
        """A step with so many images on each worker, and its share of an epoch's end, when batch norm's statistics go around."""
        *early, last = (cluster.all_reduce_s(workers, size) for size in self.bucket_bytes)
        exposed = last + max(0.0, sum(early) - _BACKWARD * self._passes_s(cluster, images))
        epoch_end = self.statistics * cluster.all_reduce_s(workers, 1024)
        return self.one_gpu_s(cluster, images) + exposed + epoch_end / self.steps_per_epoch

    def fixed_batch(self, cluster: Cluster, workers: int) -> float | None:
        """Efficiency where the recipe's batch is shared out: the time of one GPU over that of all; `None` with less than an image each."""
        if workers > self.batch_size:
            return None
        alone = self.step_s(cluster, 1, self.batch_size)
        return alone / workers / self.step_s(cluster, workers, math.ceil(self.batch_size / workers))

    def grown_batch(self, cluster: Cluster, workers: int) -> float:
        """Efficiency where each worker has the recipe's batch, and data are as many times more."""
        return self.step_s(cluster, 1, self.batch_size) / self.step_s(cluster, workers, self.batch_size)

    def pays_up_to(self, cluster: Cluster) -> int:
        """Most GPUs, as a power of two, of which sharing the recipe's batch uses at least half."""
        return max(workers for workers in (2**power for power in range(10)) if (self.fixed_batch(cluster, workers) or 0) >= 0.5)

    def _passes_s(self, cluster: Cluster, images: int) -> float:
        return self.image_operations * images / cluster.operations_per_s

    def _update_s(self, cluster: Cluster) -> float:
        traffic_s = _BYTES_PER_UPDATED_WEIGHT * self.parameters / cluster.memory_bytes_per_s
        return self.optimizer_operations / cluster.operations_per_s + traffic_s


@dataclass(frozen=True)
class Loopback:
    """All-reduce between processes of one machine: they share its cores, so all that is sent adds up.

    Attributes:
        call_s: of a call, by the number of workers; where they are more than cores, mostly waiting for one's turn.
        bytes_per_s: of all workers together.
    """

    call_s: Mapping[int, float]
    bytes_per_s: float

    @classmethod
    def fitted(cls, rows: Sequence[dict[str, Any]]) -> Loopback:
        """Least squares of relative errors, over what is as large as gradients are: a few numbers take another way."""
        rows = [row for row in rows if row["bytes"] >= SMALLEST_GRADIENTS]
        workers = sorted({row["workers"] for row in rows})
        terms = np.array([[*(float(row["workers"] == number) for number in workers), _sent(row["workers"], row["bytes"])] for row in rows])
        seconds = np.array([row["median_s"] for row in rows])
        scale = terms.max(0)
        found = nnls(terms / scale / seconds[:, None], np.ones(len(rows)))[0] / scale
        return cls(dict(zip(workers, map(float, found), strict=False)), float(1 / found[-1]))

    def all_reduce_s(self, workers: int, size: float) -> float:
        """As of `Cluster`, for as many workers as were measured."""
        return self.call_s[workers] + _sent(workers, size) / self.bytes_per_s


def _sent(workers: int, size: float) -> float:
    """Bytes, by all workers of a ring."""
    return 2 * (workers - 1) * size

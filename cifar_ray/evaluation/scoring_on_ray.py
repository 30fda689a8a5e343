"""Score a split on the workers of a Ray cluster. The results are the same as in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
from ray.util import ActorPool

from cifar_ray.cluster.process import prepare_process
from cifar_ray.cluster.worker_pool import worker_pool
from cifar_ray.config import EngineName, PrecisionName
from cifar_ray.data import ImageDataset
from cifar_ray.errors import DataError
from cifar_ray.evaluation.scoring import BlockScores, OnProgress, count_blocks, device_here, score_block
from cifar_ray.evaluation.selection import Selected, load_selected
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import Bundle


def score_on_ray(
    bundle: Bundle,
    data: Selected,
    corrupt_every: int | None,
    on_progress: OnProgress = lambda _: None,
    *,
    num_workers: int,
    precision: PrecisionName,
    engine: EngineName,
) -> Iterator[tuple[int, BlockScores]]:
    """Give each block to the next idle worker; restart workers that fail, and repeat their blocks.

    Uses a running cluster, or starts one on this machine and stops it at the end.

    Args:
        bundle: the model; Ray sends it to the workers.
        data: the images; workers load them on their own hosts.
        corrupt_every: see `score_block`.
        on_progress: receives the number of new predictions after each block.
        num_workers: number of workers; each uses one GPU, or a share of the CPUs if the cluster has no GPU.
        precision: see `Predictor`.
        engine: see `Predictor`.

    Yields:
        Number and scores of each block, in the order of completion.

    Raises:
        ResourceError: if the cluster has too few resources, or workers fail repeatedly.
        DataError: if the data are missing or different on a host.
    """

    def arguments(threads: int) -> tuple[Any, ...]:
        return ray.put((bundle, data.config, data.split, data.images.fingerprint)), corrupt_every, precision, engine, threads

    with worker_pool(num_workers, _Scorer, arguments) as workers:
        blocks = range(count_blocks(len(data.images)))
        for block, scores in ActorPool(workers).map_unordered(lambda worker, block: worker.score.remote(block), blocks):
            on_progress(len(scores.logits) + scores.corrupted.size)
            yield block, scores


class _Scorer:
    """Actor that holds the model and the images, and scores one block per call."""

    def __init__(
        self,
        job: tuple[Bundle, Any, Any, str],
        corrupt_every: int | None,
        precision: PrecisionName,
        engine: EngineName,
        threads: int,
    ) -> None:
        prepare_process(threads)
        self._bundle, self._config, self._split, self._fingerprint = job
        self._corrupt_every, self._precision, self._engine = corrupt_every, precision, engine
        self._ready: tuple[Predictor, ImageDataset] | None = None

    def score(self, block: int) -> tuple[int, BlockScores]:
        """Score one block; return its number and its scores."""
        # Loaded here: Ray would report an exception in the constructor as the death of the actor, without the type of the exception.
        predictor, images = self._ready = self._ready or self._prepare()
        return block, score_block(predictor, images.images, block, self._corrupt_every)

    def _prepare(self) -> tuple[Predictor, ImageDataset]:
        images = load_selected(self._bundle.manifest, self._config, self._split).images
        if images.fingerprint != self._fingerprint:
            raise DataError(f"host {ray.util.get_node_ip_address()} has different images; copy the same data to every host")
        return Predictor(self._bundle, device_here(), self._precision, self._engine), images

"""The model's side: gathers pictures into batches and runs them on one thread."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray import serve

from cifar_ray.config import ResizePolicy
from cifar_ray.errors import CifarRayError
from deployments.config import ServeConfig
from deployments.contract import Classified, Status, StoredModel, UnavailableError
from deployments.live_model import LiveModel

POLL_S = 2.0

Pixels = npt.NDArray[np.uint8]


class ClassifierReplica:
    """A copy of the model as a Serve deployment; the other side of `contract.Classifier`."""

    def __init__(self, config: ServeConfig) -> None:
        threads = compute_threads(config, _node_cores())
        self._model = LiveModel(config, "cuda" if ray.get_gpu_ids() else "cpu")
        # one thread: forward passes side by side would only share the same cores
        self._compute = ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(threads,))
        batched = serve.batch(
            max_batch_size=config.max_batch_size, batch_wait_timeout_s=config.batch_wait_timeout_s, batch_size_fn=count_images
        )
        self._run_in_batch = batched(self._run)
        # loaded before the replica counts as ready, so that no request meets one that is still empty
        self._compute.submit(self._model.refresh).result()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    async def status(self) -> Status:
        """As the contract says."""
        return self._model.status

    async def models(self) -> list[StoredModel]:
        """As the contract says."""
        try:
            return await asyncio.to_thread(self._model.stored)
        except CifarRayError as error:
            raise UnavailableError(str(error)) from None

    async def classify(self, images: Pixels, resize_policy: ResizePolicy) -> Classified | Status:
        """As the contract says."""
        loaded = self._model.loaded
        if loaded is None or (loaded.info.image_size_px, loaded.info.resize_policy) != (images.shape[1], resize_policy):
            return self._model.status
        result: Classified = await self._run_in_batch(images)
        return result

    async def _run(self, requests: list[Pixels]) -> list[Classified]:
        """One forward pass over the images of several requests; each gets its own rows."""
        loaded = self._model.loaded
        if loaded is None:  # `classify` has looked, and a model is never taken away
            raise UnavailableError("there is no model")
        started = time.perf_counter()
        prediction = await asyncio.get_running_loop().run_in_executor(self._compute, loaded.predictor.predict, np.concatenate(requests))
        seconds = time.perf_counter() - started
        ends = np.cumsum([len(images) for images in requests])
        return [
            Classified(loaded.info, rows, len(prediction.probabilities), seconds) for rows in np.split(prediction.probabilities, ends[:-1])
        ]

    def _watch(self) -> None:
        while self._model.loaded is None:
            time.sleep(POLL_S)
            self._compute.submit(self._model.refresh).result()


def count_images(requests: list[Pixels]) -> int:
    """Size of a batch: a request may hold several images."""
    return sum(map(len, requests))


def compute_threads(config: ServeConfig, node_cores: int) -> int:
    """Threads for one forward pass: as asked, else the whole cores set aside, else an even share of the node's.

    A request of less than a core only lets everything fit on a small machine; it does not mean that the rest lies idle.
    """
    if config.torch_threads:
        return config.torch_threads
    if config.cpus_per_replica >= 1:
        return int(config.cpus_per_replica)
    return max(1, node_cores // config.num_replicas)


def _node_cores() -> int:
    nodes = ray.nodes()
    here = ray.get_runtime_context().get_node_id()
    return int(sum(node["Resources"].get("CPU", 0) for node in nodes if node["NodeID"] == here))

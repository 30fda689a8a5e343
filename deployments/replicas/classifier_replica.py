"""The classifier replica: keeps models in memory and runs batches on one thread.

The process that starts the server imports this module, too. So torch, and modules that need torch, are imported only in the replica.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import ray

from cifar_ray.config import ResizePolicy
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import CifarRayError, ResourceError, UnknownModelError
from deployments.predicting.batcher import Batcher
from deployments.predicting.contract import Classified, Explained, ModelInfo, Pixels, Status, StoredGallery, StoredModel, UnavailableError
from deployments.replicas.request_metrics import ModelMetrics

if TYPE_CHECKING:
    from deployments.replicas.live_models import LoadedModel

POLL_S = 2.0


class ClassifierReplica:
    """The classifier as a Serve deployment; it implements `contract.Classifier`.

    Args:
        config: the server's settings.
        names: as for `LiveModels`.
    """

    def __init__(self, config: ServeConfig, names: tuple[str, ...] | None) -> None:
        import torch

        from deployments.replicas.live_models import LiveModels

        threads = compute_threads(config, _node_cores())
        has_gpu = bool(ray.get_gpu_ids())
        self._models = LiveModels(config, "cuda" if has_gpu else "cpu", names)
        self._metrics = ModelMetrics()
        # On a CPU, one thread runs forward passes: several at a time would only compete for the same cores. For a GPU, a second thread
        # copies one batch while the GPU computes the other.
        passes = 2 if has_gpu else 1
        self._compute = ThreadPoolExecutor(passes, "compute", initializer=torch.set_num_threads, initargs=(threads,))
        # A second thread loads and warms up a model while the first one predicts.
        self._loader = ThreadPoolExecutor(1, "load", initializer=torch.set_num_threads, initargs=(threads,))
        # Merges the batches that several ingress replicas send while a batch runs.
        self._batcher = Batcher(self._run, config.max_batch_size, max_calls=passes)
        # The first model loads before the replica counts as ready, so that every request finds a model.
        self._loader.submit(self._models.refresh).result()
        threading.Thread(target=self._refresh_forever, name="refresh", daemon=True).start()

    async def status(self, reference: str | None = None) -> Status:
        """Implements `Classifier`."""
        if reference is None:
            return self._models.status
        found = await self._find(reference)
        return found if isinstance(found, Status) else Status(found.info)

    async def models(self) -> list[StoredModel]:
        """Implements `Classifier`."""
        try:
            return await asyncio.to_thread(self._models.stored)
        except CifarRayError as error:
            raise UnavailableError(str(error)) from None

    async def gallery(self, reference: str | None) -> StoredGallery | Status:
        """Implements `Classifier`."""
        try:
            return await asyncio.to_thread(self._models.gallery, reference)
        except CifarRayError as error:
            return Status(None, str(error), is_known=not isinstance(error, UnknownModelError))

    async def classify(self, images: Pixels, reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        """Implements `Classifier`."""
        loaded = await self._find(reference)
        if isinstance(loaded, Status):
            return loaded
        if (loaded.info.image_size_px, loaded.info.resize_policy) != (images.shape[1], resize_policy):
            return Status(loaded.info)
        return await self._batcher.classify(loaded, images)

    async def explain(self, image: Pixels, reference: str | None, expected: ModelInfo, class_id: int | None) -> Explained | Status:
        """Implements `Classifier`."""
        from cifar_ray.inference.explain import explain

        loaded = await self._find(reference)
        if isinstance(loaded, Status):
            return loaded
        if loaded.info != expected:
            return Status(loaded.info)
        # Runs with the forward passes, because on a thread of its own it would compete with them for the same cores.
        found = await asyncio.get_running_loop().run_in_executor(self._compute, explain, loaded.predictor, image, class_id)
        return Explained(loaded.info, *found)

    async def _find(self, reference: str | None) -> LoadedModel | Status:
        if loaded := self._models.find(reference):
            return loaded
        if reference is None:
            return self._models.status
        return self._models.status_on_trial(reference) or await self._load(reference)

    async def _load(self, reference: str) -> LoadedModel | Status:
        try:
            await asyncio.to_thread(self._models.check, reference)  # unknown models do not wait for the loader, which may be busy
            return await asyncio.get_running_loop().run_in_executor(self._loader, self._models.load, reference)
        except CifarRayError as error:  # returned, because Serve logs a traceback of an exception
            return Status(None, str(error), is_known=not isinstance(error, UnknownModelError))

    async def _run(self, loaded: LoadedModel, images: Pixels) -> Classified:
        started = time.perf_counter()
        try:
            prediction = await asyncio.get_running_loop().run_in_executor(self._compute, loaded.predictor.predict, images)
        except ResourceError as error:
            raise UnavailableError(str(error)) from None
        seconds = time.perf_counter() - started
        classified = Classified(loaded.info, prediction.probabilities, prediction.abstains, len(images), seconds)
        self._metrics.ran(classified)
        return classified

    def _refresh_forever(self) -> None:
        while True:
            time.sleep(POLL_S)
            self._loader.submit(self._models.refresh).result()


def compute_threads(config: ServeConfig, node_cores: int) -> int:
    """Threads for one forward pass: as configured, else the whole cores reserved, else an even share of the node's cores.

    A reservation of less than one core only lets all actors fit on a small machine. It does not say how many cores are free, so the
    replicas then share all cores of the node.
    """
    if config.torch_threads:
        return config.torch_threads
    if config.cpus_per_replica >= 1:
        return int(config.cpus_per_replica)
    return max(1, node_cores // config.replica_limit)


def _node_cores() -> int:
    nodes = ray.nodes()
    here = ray.get_runtime_context().get_node_id()
    return int(sum(node["Resources"].get("CPU", 0) for node in nodes if node["NodeID"] == here))

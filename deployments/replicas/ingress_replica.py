"""The ingress as a Serve deployment; it calls the classifier through a Serve handle. Its process does not import torch."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from cifar_ray.config import ResizePolicy
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.drift.windows import WindowWriter
from deployments.http.rate_limits import RateLimiter, TokenBuckets
from deployments.predicting.contract import (
    Classified,
    Classifier,
    DeadlineError,
    Explained,
    ModelInfo,
    Pixels,
    ReplicaLostError,
    Status,
    StoredGallery,
    StoredModel,
    UnavailableError,
)
from deployments.protocols.protocol_server import ProtocolServer
from deployments.replicas.request_metrics import DriftMetrics, IngressMetrics
from deployments.staging.trials import TrialsInStorage

_LIMITS_TIMEOUT_S = 1.0


class RemoteClassifier(Classifier):
    """Calls a classifier replica, and converts Ray's errors to the errors of `contract`.

    Args:
        handle: handle of the classifier deployment.
        timeout_s: maximum wait for an answer, in seconds.
    """

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def status(self, reference: str | None = None) -> Status:
        """Implements `Classifier`."""
        status: Status = await self._answer(self._handle.status.remote(reference))
        return status

    async def models(self) -> list[StoredModel]:
        """Implements `Classifier`."""
        models: list[StoredModel] = await self._answer(self._handle.models.remote())
        return models

    async def gallery(self, reference: str | None) -> StoredGallery | Status:
        """Implements `Classifier`."""
        gallery: StoredGallery | Status = await self._answer(self._handle.gallery.remote(reference))
        return gallery

    async def classify(self, images: Pixels, reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        """Implements `Classifier`."""
        result: Classified | Status = await self._answer(self._handle.classify.remote(images, reference, resize_policy))
        return result

    async def explain(self, image: Pixels, reference: str | None, expected: ModelInfo, class_id: int | None) -> Explained | Status:
        """Implements `Classifier`."""
        result: Explained | Status = await self._answer(self._handle.explain.remote(image, reference, expected, class_id))
        return result

    async def _answer(self, response: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await response
        except TimeoutError:
            raise DeadlineError(f"no answer within {self._timeout_s:g} s: the server is busy or still loads the model; try again") from None
        except RayTaskError as error:  # the replica raised: the cause is one of our errors, or a bug
            if isinstance(error.cause, UnavailableError):
                raise error.cause from None
            raise
        except (RayActorError, ReplicaUnavailableError):
            raise ReplicaLostError("the replica that processed the picture died; try again") from None
        except (RayError, RayServeException) as error:
            raise UnavailableError(f"no replica of the model is available ({type(error).__name__}); try again") from None


class SharedLimits(RateLimiter):
    """Rate limits that all ingress replicas share, in a separate deployment.

    While that deployment cannot be reached, each replica grants an even share of the limits.

    Args:
        handle: handle of the deployment of `TokenBuckets`.
        replicas: number of ingress replicas.
    """

    def __init__(self, handle: DeploymentHandle[Any], replicas: int) -> None:
        self._handle = handle
        self._replicas = replicas
        self._own = TokenBuckets()

    async def wait_s(self, name: str, requests_per_minute: float) -> float:
        """Implements `RateLimiter`."""
        try:
            async with asyncio.timeout(_LIMITS_TIMEOUT_S):
                return float(await self._handle.wait_s.remote(name, requests_per_minute))
        except (TimeoutError, RayError, RayServeException):
            return await self._own.wait_s(name, requests_per_minute / self._replicas)


class IngressReplica(ProtocolServer):
    """The ingress deployment; Serve runs the app that `__serve_build_asgi_app__` returns, and calls a method for each gRPC request.

    Args:
        classifier: handle of the classifier deployment.
        config: the server's settings.
        limits: handle of the shared rate limits; `None` keeps them in this process.
        jobs: handle of the replica that runs jobs. It is not used, but makes Serve start that replica; jobs go through the storage.
    """

    def __init__(
        self,
        classifier: DeploymentHandle[Any],
        config: ServeConfig,
        limits: DeploymentHandle[Any] | None = None,
        jobs: DeploymentHandle[Any] | None = None,
    ) -> None:
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # otherwise it logs every malformed upload
        limiter = SharedLimits(limits, config.num_ingress_replicas) if limits else None
        trials = TrialsInStorage(config.storage)
        windows = WindowWriter(config.storage) if config.drift else None
        super().__init__(RemoteClassifier(classifier, config.request_timeout_s), config, IngressMetrics(), limiter, trials, windows)
        trials.follow()
        if windows:
            windows.write_forever()
            DriftMetrics().follow(config.storage)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self.http_app

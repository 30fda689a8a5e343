"""Finds the model to serve in the store, and keeps it ready."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from cifar_ray.errors import BundleError, CifarRayError
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import ModelStore
from deployments.config import ServeConfig
from deployments.contract import ModelInfo, Status, StoredModel

DEFAULT_MODEL = "cifar10"
RETRY_DAMAGED_S = 30.0

# Serve's own logger: it writes to the replica's log file and to the terminal of `serve run`
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A predictor that has been checked and warmed up, and what the ingress must know of it."""

    predictor: Predictor
    info: ModelInfo


class LiveModel:
    """The model that answers. It is found in the store, checked, warmed up, and only then put in place, as one object.

    Args:
        config: which model, where, and in which precision.
        device: where it runs.

    Attributes:
        loaded: `None` until there is a model.
        problem: why there is none, and what to do.
    """

    def __init__(self, config: ServeConfig, device: str) -> None:
        self._config = config
        self._device = device
        self._damaged: dict[tuple[str, int], tuple[float, str]] = {}
        self.loaded: LoadedModel | None = None
        self.problem = ""

    @property
    def status(self) -> Status:
        """What the ingress must know."""
        return Status(self.loaded.info if self.loaded else None, self.problem)

    def refresh(self) -> None:
        """Looks into the store once while nothing is loaded. Never raises: without a model the server stays up to say why."""
        if self.loaded is not None:
            return
        unforeseen: Exception | None = None
        try:
            self.loaded, problem = self._find()
        except CifarRayError as error:
            problem = str(error)
        except Exception as error:
            problem, unforeseen = f"loading a model failed: {type(error).__name__}: {' '.join(str(error).split())}", error
        if problem and problem != self.problem:
            logger.warning("no model to serve: %s", problem, exc_info=unforeseen)
        self.problem = problem

    def stored(self) -> list[StoredModel]:
        """All names in the store.

        Raises:
            StoreError: if the storage cannot be read.
        """
        store, present = ModelStore(self._config.storage), self.status.model

        def describe(name: str) -> StoredModel:
            version = present.version if present and present.name == name else None
            return StoredModel(name, tuple(store.versions(name)), store.aliases(name), version)

        return [describe(name) for name in store.names()]

    def _find(self) -> tuple[LoadedModel | None, str]:
        """The first candidate that can be loaded, or what is wrong with all of them."""
        store, wanted = ModelStore(self._config.storage), self._config.model
        names = store.names()
        if not names or (wanted and wanted.partition("@")[0] not in names):
            missing = f"no model {wanted}" if wanted else "no model yet"
            there_is = f" (there is: {', '.join(names)})" if names else ""
            return None, f"{missing} in {self._config.storage}{there_is}; train one: {self._config.train_command}"
        problems = []
        for reference in [wanted] if wanted else [DEFAULT_MODEL] if DEFAULT_MODEL in names else names:
            try:
                return self._load(store, reference), ""
            except CifarRayError as error:
                problems.append(str(error))
        return None, "; ".join(problems)

    def _load(self, store: ModelStore, reference: str) -> LoadedModel:
        started = time.monotonic()
        name, version = store.resolve(reference)
        failed_at, failure = self._damaged.get((name, version), (0.0, ""))
        # a version is immutable, so a damaged one is only read again in case somebody restores it
        if failure and started - failed_at < RETRY_DAMAGED_S:
            raise BundleError(failure)
        try:
            bundle = store.load(f"{name}@{version}")
            predictor = Predictor(bundle, self._device, self._config.precision, self._config.engine)
        except CifarRayError as error:
            self._damaged[name, version] = (started, str(error))
            raise
        predictor.warm_up(self._config.max_batch_size)
        logger.info(
            "serving %s on %s in %s with %s (%s), loaded in %.1f s",
            bundle.reference,
            self._device,
            predictor.precision.name,
            predictor.engine,
            predictor.engine_reason,
            time.monotonic() - started,
        )
        manifest = bundle.manifest
        info = ModelInfo(bundle.name, bundle.version, manifest.class_names, manifest.image_size_px, manifest.resize_policy)
        return LoadedModel(predictor, info)

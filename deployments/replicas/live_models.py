"""Models in memory: loaded from the store, updated when it changes, and evicted when memory runs short."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import BundleError, CifarRayError, StoreError, UnknownModelError
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import ModelStore
from cifar_ray.store.aliases import PREVIOUS, PRODUCTION
from cifar_ray.store.default_model import first_version_at, last_promoted_first
from cifar_ray.store.gallery import GALLERY_FILE
from cifar_ray.store.registry import TEST_ACCURACY, TEST_MAP
from cifar_ray.store.staging.stage_file import StageFile
from deployments.predicting.contract import LoadedVersion, ModelInfo, Status, StoredGallery, StoredModel, UnavailableError
from deployments.replicas.store_listing import StoreListing

RETRY_DAMAGED_S = 30.0

# Serve's logger writes to the replica's log file and to the terminal of `serve run`
logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A checked and warmed-up predictor, and the facts that the ingress needs about it."""

    predictor: Predictor
    info: ModelInfo
    weights_bytes: int


class LiveModels:
    """The models in memory by reference; `None` is the default model. The default model and versions on trial are never evicted.

    A new version is loaded, checked and warmed up first. Then it replaces the old version in one step; requests in progress finish with
    the old version. If loading fails, the old version stays. `find`, `check`, `stored` and `gallery` are thread-safe; only one thread at
    a time may call the other methods.

    Args:
        config: default model, storage, precision and memory limit.
        device: `cpu` or `cuda`.
        names: names in the store when the server started, the best default first; `None` reads them at the first refresh.
    """

    def __init__(self, config: ServeConfig, device: str, names: tuple[str, ...] | None = None) -> None:
        self._config = config
        self._device = device
        self._names = names
        self._answering: dict[str | None, LoadedModel] = {}
        self._used_at: dict[str | None, float] = {}
        self._failed: dict[tuple[str, int], tuple[float, str]] = {}
        self._problems: dict[str | None, str] = {}
        self._on_trial: frozenset[str] = frozenset()
        self._listing = StoreListing(lambda: self._store)

    @cached_property
    def _store(self) -> ModelStore:
        """The store, without retries: a refresh is repeated anyway, and a client that names a model must not wait for retries."""
        return ModelStore(self._config.storage, timeout_s=0)

    @property
    def status(self) -> Status:
        """State of the default model."""
        own = self._answering.get(None)
        return Status(own.info if own else None, self._problems.get(None, ""))

    def status_on_trial(self, reference: str) -> Status | None:
        """State of a version on trial that is not in memory; the refresh loads it, so no request waits for it. `None` if not on trial."""
        if reference not in self._on_trial:
            return None
        problem = self._problems.get(reference, "")
        return Status(None, problem or f"{reference} is being loaded; try again", is_loading=not problem)

    def find(self, reference: str | None) -> LoadedModel | None:
        """The model of a reference if it is in memory. Does not access the disk."""
        if reference in self._answering:
            self._used_at[reference] = time.monotonic()
            return self._answering[reference]
        return next((loaded for loaded in list(self._answering.values()) if loaded.info.reference == reference), None)

    def check(self, reference: str) -> None:
        """Check that a model can be loaded. Reads the store at most once a second, however often it is called.

        Raises:
            UnknownModelError: if the store has no such model.
            StoreError: if the storage cannot be read.
            BundleError: if the model was found damaged less than half a minute ago.
        """
        self._refuse_damaged(*self._listing.resolve(reference))

    def load(self, reference: str) -> LoadedModel:
        """The model of a reference, loaded if necessary. Evicts the least recently used models if memory runs short.

        Raises:
            UnknownModelError: if the store has no such model.
            StoreError: if the storage cannot be read.
            BundleError: if the model cannot be loaded.
        """
        if loaded := self.find(reference):
            return loaded
        self.check(reference)
        with self._without_location(reference):
            loaded = self._load(self._store, reference)
        self._used_at[reference] = time.monotonic()
        self._answering[reference] = loaded
        self._evict(keep=reference)
        return loaded

    def refresh(self) -> None:
        """Update the models in memory from the store. Never raises: the server stays up to report the problem."""
        with suppress(StoreError):  # the versions on trial stay as they are
            self._on_trial = frozenset(stage.reference for stage in StageFile(self._config.storage, timeout_s=0).read())
        for reference in {None: None} | dict.fromkeys(self._on_trial) | self._answering:
            unexpected: Exception | None = None
            try:
                self._answering[reference], problem = self._newest(reference)
            except UnknownModelError as error:
                problem = str(error)
                if reference is not None:  # the model was deleted
                    self._forget(reference)
            except CifarRayError as error:
                problem = str(error)
            except Exception as error:
                problem, unexpected = f"loading a model failed: {type(error).__name__}: {' '.join(str(error).split())}", error
            if problem and problem != self._problems.get(reference):
                present = self._answering.get(reference)
                instead = f"still serving {present.info.reference}" if present else "no model to serve"
                logger.warning("%s: %s", instead, problem, exc_info=unexpected)
            self._problems[reference] = problem
        self._evict()

    def stored(self) -> list[StoredModel]:
        """All models in the store.

        Raises:
            StoreError: if the storage cannot be read.
        """
        return [self._describe(self._store, name) for name in self._store.names()]

    def gallery(self, reference: str | None) -> StoredGallery:
        """A model's mistakes, read from the store without loading the model.

        Raises:
            UnavailableError: if `reference` is `None` and there is no default model.
            UnknownModelError: if the store has no such model.
            StoreError: if the storage cannot be read.
            BundleError: if the bundle is damaged.
        """
        store, wanted = self._store, reference or self.status.require().reference
        self._listing.resolve(wanted)
        with self._without_location(wanted):
            name, version = store.resolve(wanted)
        return StoredGallery(name, version, store.attachment(f"{name}@{version}", GALLERY_FILE))

    def _describe(self, store: ModelStore, name: str) -> StoredModel:
        versions = tuple(store.versions(name))
        in_memory = {
            LoadedVersion(loaded.info.version, loaded.predictor.engine, loaded.predictor.precision.name)
            for loaded in list(self._answering.values())
            if loaded.info.name == name
        }
        problems = [failure for (failed, version), (_, failure) in list(self._failed.items()) if failed == name and version in versions]
        described = StoredModel(name, versions, store.aliases(name), tuple(sorted(in_memory)))
        try:
            manifest = store.manifest(name)
            metrics = manifest.metrics
            described = replace(
                described,
                class_names=manifest.class_names,
                class_descriptions=manifest.class_descriptions,
                task=manifest.task,
                test_accuracy=metrics.get(TEST_ACCURACY),
                test_map=metrics.get(TEST_MAP),
            )
        except CifarRayError as error:
            problems.append(str(error))
        return replace(described, problem="; ".join(dict.fromkeys(problems)))

    def _newest(self, reference: str | None) -> tuple[LoadedModel, str]:
        """The model that a reference means now, and the problems of better candidates that cannot be loaded.

        Raises:
            CifarRayError: if no candidate can be loaded.
        """
        store = self._store
        if reference is not None:
            return self._load(store, reference), ""
        present = self._answering.get(None)
        problems: list[str] = []
        for candidate in self._candidates(store):
            try:
                return self._load(store, candidate), "; ".join(problems)
            except CifarRayError as error:
                problems.append(str(error))
                if present and candidate.partition("@")[0] == present.info.name:  # the version in memory is better than any other candidate
                    break
        raise BundleError("; ".join(problems))

    def _candidates(self, store: ModelStore) -> Iterator[str]:
        """References to candidates for the default model, best first. All replicas find the same order, whenever they started.

        Names that were added after the server started come last, the oldest first. So a new name never replaces the served model.
        """
        if self._names is None:
            self._names = tuple(last_promoted_first(store))
        names, wanted = store.names(), self._config.model
        if not names or (wanted and wanted.partition("@")[0] not in names):
            missing = f"model {wanted} not found" if wanted else "no model yet"
            available = f". Available: {', '.join(names)}" if names else ""
            raise UnavailableError(f"{missing} in {self._config.storage}{available}. Train one: {self._config.train_command}")
        present = [name for name in self._names if name in names]
        later = sorted(set(names).difference(present), key=partial(first_version_at, store))
        for name in [wanted] if wanted else [*present, *later]:
            yield name
            if "@" in name:
                continue
            aliases = store.aliases(name)
            if PREVIOUS in aliases:
                yield f"{name}@{PREVIOUS}"
            elif PRODUCTION not in aliases:  # the newest version was meant; the one before is next best
                yield from (f"{name}@{version}" for version in reversed(store.versions(name)[:-1]))

    def _load(self, store: ModelStore, reference: str) -> LoadedModel:
        started = time.monotonic()
        name, version = store.resolve(reference)
        for loaded in self._answering.values():
            if (loaded.info.name, loaded.info.version) == (name, version):
                return loaded
        self._refuse_damaged(name, version)
        try:
            bundle = store.load(f"{name}@{version}")
            predictor = Predictor(bundle, self._device, self._config.precision, self._config.engine)
            predictor.warm_up(self._config.max_batch_size)
        except CifarRayError as error:
            self._failed[name, version] = (started, str(error))
            raise
        self._failed.pop((name, version), None)
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
        info = ModelInfo(bundle.name, bundle.version, manifest.class_names, manifest.image_size_px, manifest.resize_policy, manifest.rules)
        return LoadedModel(predictor, info, sum(tensor.nbytes for tensor in bundle.weights.values()))

    def _refuse_damaged(self, name: str, version: int) -> None:
        """Refuse a version that failed to load in the last 30 s. It is immutable, so it is read again only in case someone restores it."""
        failed_at, failure = self._failed.get((name, version), (0.0, ""))
        if failure and time.monotonic() - failed_at < RETRY_DAMAGED_S:
            raise BundleError(failure)

    @contextmanager
    def _without_location(self, reference: str) -> Iterator[None]:
        """Replace the store's message about a model that was deleted just now: clients must not learn the location of the store."""
        try:
            yield
        except UnknownModelError:
            raise self._listing.unknown(reference) from None

    def _evict(self, keep: str | None = None) -> None:
        """Evict the least recently used models until the rest fits; the default model and `keep` always stay."""
        while sum({id(loaded): loaded.weights_bytes for loaded in self._answering.values()}.values()) > self._config.model_memory_bytes:
            droppable = [reference for reference in self._answering if reference not in (None, keep, *self._on_trial)]
            if not droppable:
                return
            oldest = min(droppable, key=lambda reference: self._used_at.get(reference, 0.0))
            logger.info("evicted %s: other models need the memory", self._answering[oldest].info.reference)
            self._forget(oldest)

    def _forget(self, reference: str | None) -> None:
        self._answering.pop(reference, None)
        self._used_at.pop(reference, None)

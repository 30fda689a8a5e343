"""A listing of the store, read at most once a second, however many requests name unknown models."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from cifar_ray.errors import StoreError, UnknownModelError
from cifar_ray.store import ModelStore
from cifar_ray.store.aliases import PRODUCTION
from cifar_ray.store.registry import LATEST

_FRESH_S = 1.0


class StoreListing:
    """Names, versions and aliases of the store; thread-safe.

    Args:
        store: opens the store.
        clock: monotonic clock, in seconds.
    """

    def __init__(self, store: Callable[[], ModelStore], clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = -_FRESH_S
        self._selectors: dict[str, dict[str, int]] = {}
        self._problem = ""

    def resolve(self, reference: str) -> tuple[str, int]:
        """The name and version of a reference, as `ModelStore.resolve`, from a listing that is at most a second old.

        Raises:
            UnknownModelError: if the store has no such model; without the location of the store, which clients must not learn.
            StoreError: if the storage cannot be read.
        """
        listed = self._listed()
        name, at, selector = reference.partition("@")
        selectors = listed.get(name, {})
        version = selectors.get(selector if at else PRODUCTION, None if at else selectors.get(LATEST))
        if version is None:
            raise self.unknown(reference)
        return name, version

    def unknown(self, reference: str) -> UnknownModelError:
        """The error for a reference that the store does not have; it lists the available versions."""
        listed = self._listed()
        available = ", ".join(f"{name}@{selector}" for name, selectors in listed.items() for selector in selectors if selector.isdigit())
        return UnknownModelError(f"model {reference[:100]!r} not found. Available: {available or 'none'}")

    def _listed(self) -> dict[str, dict[str, int]]:
        """Version by selector (number or alias) of each name."""
        with self._lock:
            if self._clock() - self._read_at >= _FRESH_S:
                self._problem = ""
                try:
                    self._selectors = _read(self._store())
                except StoreError as error:
                    self._problem = str(error)
                self._read_at = self._clock()
            if self._problem:
                raise StoreError(self._problem)
            return self._selectors


def _read(store: ModelStore) -> dict[str, dict[str, int]]:
    selectors: dict[str, dict[str, int]] = {}
    for name in store.names():
        with suppress(UnknownModelError):  # deleted just now
            versions, aliases = store.versions(name), store.aliases(name)
            present = {alias: version for alias, version in aliases.items() if version in versions}
            selectors[name] = {str(version): version for version in versions} | {LATEST: versions[-1]} | present
    return selectors

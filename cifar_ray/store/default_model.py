"""Chooses the model that a server serves if no name is given: the one that was promoted last."""

from __future__ import annotations

from datetime import UTC, datetime

from cifar_ray.errors import CifarRayError
from cifar_ray.store.registry import LATEST, ModelStore

_UNKNOWN = datetime.min.replace(tzinfo=UTC)


def last_promoted_first(store: ModelStore) -> list[str]:
    """All names in the store. Names with a production version come first, the one promoted last at the top.

    The others follow, the one with the newest version at the top. Only what the store holds decides, so all hosts find the same order.

    Raises:
        StoreError: if the storage cannot be read.
    """
    return sorted(store.names(), key=lambda name: _rank(store, name), reverse=True)


def _rank(store: ModelStore, name: str) -> tuple[bool, datetime]:
    try:
        promoted = store.promoted_at(name)
        return promoted is not None, promoted or store.manifest(f"{name}@{LATEST}").created_at
    except CifarRayError:  # damaged: one of the others can answer
        return False, _UNKNOWN


def first_version_at(store: ModelStore, name: str) -> datetime:
    """Time at which a name came into the store. It does not change when other names come."""
    try:
        return store.manifest(f"{name}@{store.versions(name)[0]}").created_at
    except CifarRayError:
        return datetime.max.replace(tzinfo=UTC)

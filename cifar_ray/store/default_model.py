"""Choose the model that a server serves if no name is given: the one that was promoted last."""

from __future__ import annotations

from datetime import UTC, datetime

from cifar_ray.errors import CifarRayError
from cifar_ray.store.registry import LATEST, ModelStore

_UNKNOWN = datetime.min.replace(tzinfo=UTC)


def last_promoted_first(store: ModelStore) -> list[str]:
    """All names in the store: first those with a production version, the last promotion at the top.

    The others follow, the newest version at the top. The order depends only on the content of the store, so it is the same on all hosts.

    Raises:
        StoreError: if the storage cannot be read.
    """
    return sorted(store.names(), key=lambda name: _rank(store, name), reverse=True)


def _rank(store: ModelStore, name: str) -> tuple[bool, datetime]:
    try:
        promoted = store.promoted_at(name)
        return promoted is not None, promoted or store.manifest(f"{name}@{LATEST}").created_at
    except CifarRayError:  # the bundle is damaged, but another model can be served
        return False, _UNKNOWN


def first_version_at(store: ModelStore, name: str) -> datetime:
    """Time at which a name got its first version, which later models do not change; the maximum if the bundle is damaged."""
    try:
        return store.manifest(f"{name}@{store.versions(name)[0]}").created_at
    except CifarRayError:
        return datetime.max.replace(tzinfo=UTC)

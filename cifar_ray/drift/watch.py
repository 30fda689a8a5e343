"""Look for drift while a server runs, for its metrics."""

from __future__ import annotations

from cifar_ray.drift.detection import RECENT_PICTURES, REFERENCE_PICTURES, Drift, detect
from cifar_ray.drift.windows import FOLDER, read_edges
from cifar_ray.storage import FileTree

# With a look every ten minutes, a version gives a false alarm less than once in six years (see `MAX_P_VALUE`).
LOOK_S = 600.0

_ACTIVE_S = 86_400.0


def find_drift(storage: str) -> dict[str, Drift]:
    """Compare recent pictures with the first ones, for each version that has answered within a day; returns results by `name@version`.

    Versions with too few pictures are left out.

    Raises:
        StoreError: if the storage cannot be read.
    """
    references = FileTree(storage, FOLDER, timeout_s=0).folders()
    found = {one: detect(read_edges(storage, one, REFERENCE_PICTURES, RECENT_PICTURES, _ACTIVE_S)) for one in references}
    return {reference: drift for reference, drift in found.items() if drift.shifts}

"""The hosts of a cluster, and the check that all of them see the same storage."""

from __future__ import annotations

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.storage.probe import StorageProbe


def alive_hosts() -> list[str]:
    """Node ids of the hosts that are alive; Ray also lists lost hosts."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def check_shared_storage(probe: StorageProbe, storage: str, folder: str) -> None:
    """Check that all hosts of the cluster see a folder, before a job starts on one that does not.

    Args:
        probe: the probe in the folder.
        storage: the storage as all hosts name it.
        folder: folder in the storage.

    Raises:
        StoreError: if a host does not see it; the message names the host.
    """
    hosts = [NodeAffinitySchedulingStrategy(host, soft=False) for host in alive_hosts()]
    if len(hosts) == 1:
        return
    check = ray.remote(num_cpus=0)(_check)
    for answer in [check.options(scheduling_strategy=host).remote(probe, storage, folder) for host in hosts]:
        try:
            ray.get(answer)
        except RayTaskError as error:
            raise error.cause from None
        except RayError:
            continue  # a host that was just lost gets no work


def _check(probe: StorageProbe, storage: str, folder: str) -> None:
    probe.check(storage, folder)

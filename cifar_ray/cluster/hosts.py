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
    """Check that all hosts of the cluster can access a folder, before a job starts on a host that cannot.

    Args:
        probe: the probe in the folder.
        storage: path or URI of the storage, the same on all hosts.
        folder: folder in the storage.

    Raises:
        StoreError: if a host cannot access the folder; the message names the host.
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
            continue  # the host was lost, so it gets no work


def _check(probe: StorageProbe, storage: str, folder: str) -> None:
    probe.check(storage, folder)

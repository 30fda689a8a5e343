"""The hosts of a cluster, and whether all of them see the same storage."""

from __future__ import annotations

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.storage.probe import StorageProbe


def alive_hosts() -> list[str]:
    """Ray's ids of the hosts that are in the cluster now; Ray itself also lists those it has lost."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def check_shared_storage(probe: StorageProbe, storage: str, folder: str) -> None:
    """Makes sure that all hosts of the cluster see a folder, before work starts on one that does not.

    Args:
        probe: written there.
        storage: the location as all hosts name it.
        folder: below it.

    Raises:
        StoreError: naming a host that does not see it.
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
            continue  # a host that is lost now gets no work


def _check(probe: StorageProbe, storage: str, folder: str) -> None:
    probe.check(storage, folder)

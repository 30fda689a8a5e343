"""How many workers train, what each gets, what Ray's autoscaler is asked for, and whether hosts share a storage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Self

import ray
from ray import train
from ray._private.state import available_resources_per_node
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.exceptions import RayError, RayTaskError
from ray.experimental.internal_kv import internal_kv_get_gcs_client
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.errors import ResourceError
from cifar_ray.storage.probe import Mark

RESIZE_INTERVAL_S = 15.0  # between two looks at whether there is room for more workers, or less
_LEAST_CPUS = 0.05
_LOOK_S = 2.0
_GIVEN_BACK_S = 10.0


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What Ray has to give.

    Attributes:
        hosts: resources of each host that nobody uses now, as Ray names them.
        total: resources of all hosts, used or not.
        grows: whether an autoscaler may start more hosts.
    """

    hosts: tuple[dict[str, float], ...]
    total: dict[str, float]
    grows: bool = False

    @classmethod
    def now(cls) -> Self:
        """The cluster that this process is connected to."""
        return cls(tuple(available_resources_per_node().values()), ray.cluster_resources(), is_autoscaler_v2(fetch_from_server=True))

    @property
    def has_gpus(self) -> bool:
        """Then workers compute on those."""
        return self.total.get("GPU", 0) >= 1

    def free(self, resource: str) -> float:
        """On all hosts together."""
        return sum(host.get(resource, 0.0) for host in self.hosts)

    def without(self, cpus: float) -> Self:
        """The same, were so many CPUs of the host with most of them in use."""
        first, *others = sorted(self.hosts, key=lambda host: host.get("CPU", 0.0), reverse=True)
        return dataclasses.replace(self, hosts=(first | {"CPU": round(first.get("CPU", 0.0) - cpus, 4)}, *others))

    def room(self, cpus: float) -> int:
        """How many workers find so many CPUs on one host, and a GPU where there are any."""
        most = [int(host.get("CPU", 0.0) // cpus) for host in self.hosts]
        return sum(min(cpu, int(host.get("GPU", 0))) if self.has_gpus else cpu for cpu, host in zip(most, self.hosts, strict=True))


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """How many workers, and what each gets.

    Attributes:
        num_workers: to begin with.
        cpus: of each.
        use_gpu: whether each has one besides.
        note: what the user should know.
        bounds: fewest and most, where their number changes with the cluster.
        grows: whether an autoscaler may start hosts.
        waits: whether it must, first.
        guessed: whether nothing shows if those will have GPUs.
    """

    num_workers: int
    cpus: float
    use_gpu: bool
    note: str | None = None
    bounds: tuple[int, int] | None = None
    grows: bool = False
    waits: bool = False
    guessed: bool = False

    def resources(self) -> dict[str, float]:
        """Of one worker, as Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": 1} if self.use_gpu else {})

    def scaling_config(self) -> train.ScalingConfig:
        """The same in Ray's words."""
        return train.ScalingConfig(
            num_workers=self.bounds or self.num_workers,
            use_gpu=self.use_gpu,
            resources_per_worker=self.resources(),
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        )


def nodes_alive() -> list[str]:
    """Ray's ids of the hosts that are in the cluster now; Ray itself lists those it has lost as well."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def plan_workers(asked: tuple[int, int] | None, cluster: Cluster) -> WorkerPlan:
    """Fits the workers into the cluster, or says at once that they do not fit.

    Args:
        asked: fewest and most workers; `None` takes one a GPU, or one with all CPUs of a host.
        cluster: on one host workers may share cores, on several each has whole ones.

    Raises:
        ResourceError: if there are fewer GPUs or CPUs than needed, and nothing adds any.
    """
    use_gpu = cluster.has_gpus
    fewest, most = asked or (1, max(1, int(cluster.free("GPU"))) if use_gpu else 1)
    if asked is None:
        fewest = most
    bounds = (fewest, most) if fewest < most else None
    workers = min(most, max(fewest, cluster.room(1.0)))
    share = next((float(cpus) for cpus in range(int(cluster.free("CPU")), 0, -1) if cluster.room(cpus) >= workers), 0.0)
    if share:
        return WorkerPlan(workers, share, use_gpu, bounds=bounds, grows=cluster.grows)
    if cluster.grows:
        guessed = not use_gpu and not cluster.total.get("CPU")  # a head that only looks after others
        return WorkerPlan(fewest, 1.0, use_gpu or guessed, bounds=bounds, grows=True, waits=True, guessed=guessed)
    return _share_of_a_core(fewest, bounds, cluster)


def _share_of_a_core(workers: int, bounds: tuple[int, int] | None, cluster: Cluster) -> WorkerPlan:
    """For more workers than cores on the only host."""
    asked = f"--num-workers {workers}" if bounds is None else f"--num-workers {bounds[0]}:{bounds[1]}"
    gpus, cpus = int(cluster.free("GPU")), cluster.free("CPU")
    if cluster.has_gpus and workers > gpus:
        raise ResourceError(f"{asked}: the cluster has {cluster.total['GPU']:g} GPUs, {gpus} of them free")
    share = int(cpus / workers * 100) / 100
    hosts = f"cluster of {len(cluster.hosts)} hosts" if len(cluster.hosts) > 1 else "cluster"
    if share < _LEAST_CPUS or len(cluster.hosts) > 1 or bounds:
        each = "; workers whose number changes, or on several hosts, need a whole one each" if share >= _LEAST_CPUS else ""
        have = f"the {hosts} has {cluster.total.get('CPU', 0):g} CPUs, {cpus:g} of them free"
        raise ResourceError(f"{asked}: {have}{each}; stop other jobs or ask for less")
    note = f"{workers} workers share {cpus:g} CPU cores: {share:g} of a core each, so expect no speed-up"
    return WorkerPlan(workers, share, cluster.has_gpus, note)


def plan_when_there(asked: tuple[int, int] | None, on_message: Callable[[str], None]) -> WorkerPlan:
    """As `plan_workers` in the cluster as it is, after Ray's autoscaler has started what is missing.

    Args:
        asked: as there.
        on_message: told that this waits.

    Raises:
        ResourceError: as there, or if the autoscaler says that it may not start so much.
    """
    plan = plan_workers(asked, Cluster.now())
    if plan.waits:
        on_message(f"{plan.num_workers} workers need more than is there: waiting for the autoscaler to start hosts; Ctrl-C gives up")
    while plan.waits:
        if not _started(plan) and not (plan.guessed and _started(dataclasses.replace(plan, use_gpu=False))):
            raise ResourceError(
                f"--num-workers {plan.num_workers}: that is more than the autoscaler may start; `ray status` shows what it may"
            )
        plan = _plan_once_free(asked)
    return plan


def _plan_once_free(asked: tuple[int, int] | None) -> WorkerPlan:
    """A plan after a placement group was given back, which Ray's figures tell only some time later."""
    deadline_s = time.monotonic() + _GIVEN_BACK_S
    while (plan := plan_workers(asked, Cluster.now())).waits and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return plan


def _started(plan: WorkerPlan) -> bool:
    """Waits until there is room for all workers at once; `False` if there never will be."""
    group = placement_group([plan.resources()] * plan.num_workers)  # which is what makes an autoscaler start hosts
    try:
        while not group.wait(_LOOK_S):
            if _is_hopeless(group):
                return False
        return True
    finally:
        remove_placement_group(group)


def _is_hopeless(group: PlacementGroup) -> bool:
    status = GetClusterStatusReply.FromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=10))
    infeasible = status.autoscaling_state.infeasible_gang_resource_requests
    return any(request.details.startswith(group.id.hex()) for request in infeasible)


def check_hosts(mark: Mark, storage: str, folder: str) -> None:
    """Makes sure that all hosts of the cluster see a folder, before work begins on one that does not.

    Args:
        mark: left there.
        storage: as everybody names it.
        folder: below.

    Raises:
        StoreError: naming a host that does not.
    """
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes_alive()]
    if len(places) == 1:
        return
    look = ray.remote(num_cpus=0)(_look)
    for answer in [look.options(scheduling_strategy=place).remote(mark, storage, folder) for place in places]:
        try:
            ray.get(answer)
        except RayTaskError as error:
            raise error.cause from None
        except RayError:
            continue  # a host that is lost now gets no work


def _look(mark: Mark, storage: str, folder: str) -> None:
    mark.check(storage, folder)

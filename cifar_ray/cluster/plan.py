"""Plan the workers of a job and the resources of each, for training, tuning, evaluation and prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import ray
import tenacity
from ray.util.placement_group import placement_group, remove_placement_group

from cifar_ray.cluster import private
from cifar_ray.errors import ResourceError

if TYPE_CHECKING:
    from ray.train import ScalingConfig

RESIZE_INTERVAL_S = 15.0  # time between two checks for a new number of workers
_MIN_CPUS = 0.05
_POLL_S = 2.0
_RELEASE_TIMEOUT_S, _JOB_RELEASE_TIMEOUT_S = 10.0, 15.0


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Resources of a Ray cluster.

    Attributes:
        hosts: free resources of each host, by Ray's names.
        total: resources of all hosts, free or in use.
        grows: whether an autoscaler may start more hosts.
    """

    hosts: tuple[dict[str, float], ...]
    total: dict[str, float]
    grows: bool = False

    @classmethod
    def now(cls) -> Self:
        """The cluster that this process is connected to."""
        return cls(tuple(private.free_resources_by_host()), ray.cluster_resources(), private.autoscaler_is_on())

    @property
    def has_gpus(self) -> bool:
        """Whether the cluster has a GPU; workers then use GPUs."""
        return self.total.get("GPU", 0) >= 1

    def free(self, resource: str) -> float:
        """Free amount of a resource on all hosts."""
        return sum(host.get(resource, 0.0) for host in self.hosts)

    def without(self, cpus: float) -> Self:
        """The cluster with `cpus` fewer CPUs on the host with the most free CPUs."""
        first, *others = sorted(self.hosts, key=lambda host: host.get("CPU", 0.0), reverse=True)
        return dataclasses.replace(self, hosts=(first | {"CPU": round(first.get("CPU", 0.0) - cpus, 4)}, *others))

    def room(self, cpus: float) -> int:
        """Number of workers that fit, each with `cpus` CPUs of one host, and with a GPU if the cluster has GPUs."""
        fitting = [int(host.get("CPU", 0.0) // cpus) for host in self.hosts]
        return sum(min(cpu, int(host.get("GPU", 0))) if self.has_gpus else cpu for cpu, host in zip(fitting, self.hosts, strict=True))


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """Number of workers, and the resources of each.

    Attributes:
        num_workers: number of workers at the start.
        cpus: CPUs of each worker.
        use_gpu: whether each worker has a GPU.
        note: a message for the user, or `None`.
        bounds: minimum and maximum number of workers; `None` if the number is fixed.
        grows: whether an autoscaler may start hosts.
        waits: whether the job must wait for new hosts.
        guessed: whether it is unknown if the new hosts will have GPUs.
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
        """Resources of one worker, by Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": 1} if self.use_gpu else {})

    def actor_options(self) -> dict[str, Any]:
        """Resources of one worker as options of a Ray actor."""
        return {"num_cpus": self.cpus} | ({"num_gpus": 1} if self.use_gpu else {})

    @property
    def threads(self) -> int:
        """Number of torch threads in one worker."""
        return max(1, int(self.cpus))

    def scaling_config(self) -> ScalingConfig:
        """The plan as Ray Train's scaling config."""
        from ray.train import ScalingConfig  # the import takes more than a second, and only training needs it

        return ScalingConfig(
            num_workers=self.bounds or self.num_workers,
            use_gpu=self.use_gpu,
            resources_per_worker=self.resources(),
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        )


def plan_workers(requested: tuple[int, int] | None, cluster: Cluster) -> WorkerPlan:
    """Fit the workers into the cluster, or raise an error at once.

    Args:
        requested: minimum and maximum number of workers; `None` for one per GPU, or without GPUs one worker with all CPUs of a host.
        cluster: on one host, workers may share cores; on several hosts, each worker has whole cores.

    Raises:
        ResourceError: if there are too few GPUs or CPUs, and no autoscaler.
    """
    use_gpu = cluster.has_gpus
    minimum, maximum = requested or (1, max(1, int(cluster.free("GPU"))) if use_gpu else 1)
    if requested is None:
        minimum = maximum
    bounds = (minimum, maximum) if minimum < maximum else None
    workers = min(maximum, max(minimum, cluster.room(1.0)))
    share = next((float(cpus) for cpus in range(int(cluster.free("CPU")), 0, -1) if cluster.room(cpus) >= workers), 0.0)
    if share:
        return WorkerPlan(workers, share, use_gpu, bounds=bounds, grows=cluster.grows)
    if cluster.grows:
        guessed = not use_gpu and not cluster.total.get("CPU")  # so far only a head node, which runs no workers
        return WorkerPlan(minimum, 1.0, use_gpu or guessed, bounds=bounds, grows=True, waits=True, guessed=guessed)
    return _share_of_a_core(minimum, bounds, cluster)


def _share_of_a_core(workers: int, bounds: tuple[int, int] | None, cluster: Cluster) -> WorkerPlan:
    """Plan more workers than cores on a single host."""
    flag = f"--num-workers {workers}" if bounds is None else f"--num-workers {bounds[0]}:{bounds[1]}"
    gpus, cpus = int(cluster.free("GPU")), cluster.free("CPU")
    if cluster.has_gpus and workers > gpus:
        raise ResourceError(
            f"{flag}: the cluster has {cluster.total['GPU']:g} GPUs, {gpus} of them free; stop other jobs or request fewer workers"
        )
    share = int(cpus / workers * 100) / 100
    hosts = f"cluster of {len(cluster.hosts)} hosts" if len(cluster.hosts) > 1 else "cluster"
    if share < _MIN_CPUS or len(cluster.hosts) > 1 or bounds:
        each = ". A variable number of workers, or workers on several hosts, need a whole CPU each" if share >= _MIN_CPUS else ""
        have = f"the {hosts} has {cluster.total.get('CPU', 0):g} CPUs, {cpus:g} of them free"
        raise ResourceError(f"{flag}: {have}{each}; stop other jobs or request fewer workers")
    note = f"{workers} workers share {cpus:g} CPU cores ({share:g} each): expect no speed-up"
    return WorkerPlan(workers, share, cluster.has_gpus, note)


def plan_fixed_workers(num_workers: int) -> WorkerPlan:
    """Plan a fixed number of workers in the present cluster; wait some seconds while an earlier job releases its resources.

    Args:
        num_workers: value of `--num-workers`.

    Raises:
        ResourceError: as `plan_workers`; an autoscaler is not asked for more hosts.
    """

    def attempt() -> WorkerPlan:
        return plan_workers((num_workers, num_workers), dataclasses.replace(Cluster.now(), grows=False))

    def resources_in_use(error: BaseException) -> bool:
        cluster = Cluster.now()
        return isinstance(error, ResourceError) and any(cluster.free(name) < cluster.total.get(name, 0.0) for name in ("CPU", "GPU"))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(resources_in_use),
        stop=tenacity.stop_after_delay(_RELEASE_TIMEOUT_S),
        wait=tenacity.wait_fixed(0.2),
        reraise=True,
    )(attempt)


def plan_when_there(requested: tuple[int, int] | None, on_message: Callable[[str], None]) -> WorkerPlan:
    """Plan the workers after Ray's autoscaler has started the missing hosts.

    Args:
        requested: as for `plan_workers`.
        on_message: receives a message if this call waits for hosts.

    Raises:
        ResourceError: as `plan_workers`, or if the job exceeds the limits of the autoscaler.
    """
    plan = plan_workers(requested, Cluster.now())
    if plan.waits:
        on_message(
            f"the cluster has no room for {plan.num_workers} workers: waiting for the autoscaler to start hosts (press Ctrl-C to give up)"
        )
    while plan.waits:
        if not _started(plan) and not (plan.guessed and _started(dataclasses.replace(plan, use_gpu=False))):
            raise ResourceError(f"--num-workers {plan.num_workers}: exceeds the limits of the autoscaler; show them with: ray status")
        plan = _plan_once_free(requested)
    return plan


def _plan_once_free(requested: tuple[int, int] | None) -> WorkerPlan:
    """Plan after the removal of a placement group, which Ray's resource figures reflect with a delay."""
    poll: tenacity.Retrying = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda plan: plan.waits),
        stop=tenacity.stop_after_delay(_RELEASE_TIMEOUT_S),
        wait=tenacity.wait_fixed(0.1),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    plan: WorkerPlan = poll(lambda: plan_workers(requested, Cluster.now()))
    return plan


def await_release(before: Cluster) -> None:
    """Wait until the resources of a job are free again, at most 15 s, so that the next job finds them."""

    def is_short() -> bool:
        now = Cluster.now()
        return any(now.free(name) < before.free(name) for name in ("CPU", "GPU"))

    tenacity.Retrying(
        retry=tenacity.retry_if_result(bool),
        stop=tenacity.stop_after_delay(_JOB_RELEASE_TIMEOUT_S),
        wait=tenacity.wait_fixed(0.1),
        retry_error_callback=lambda _: None,
    )(is_short)


def _started(plan: WorkerPlan) -> bool:
    """Wait until the cluster has room for all workers; return `False` if it never will."""
    group = placement_group([plan.resources()] * plan.num_workers)  # makes the autoscaler start hosts
    try:
        while not group.wait(_POLL_S):
            if private.is_infeasible(group):
                return False
        return True
    finally:
        remove_placement_group(group)

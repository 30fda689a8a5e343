"""How many workers a job gets, and what each of them gets: for training, searching, evaluating and predicting alike."""

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

RESIZE_INTERVAL_S = 15.0  # between two looks at whether there is room for more workers, or less
_MIN_CPUS = 0.05
_POLL_S = 2.0
_RELEASE_TIMEOUT_S, _JOB_RELEASE_TIMEOUT_S = 10.0, 15.0


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
        return cls(tuple(private.free_resources_by_host()), ray.cluster_resources(), private.autoscaler_is_on())

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

    def actor_options(self) -> dict[str, Any]:
        """The same as options of a Ray actor."""
        return {"num_cpus": self.cpus} | ({"num_gpus": 1} if self.use_gpu else {})

    @property
    def threads(self) -> int:
        """For torch in one worker."""
        return max(1, int(self.cpus))

    def scaling_config(self) -> ScalingConfig:
        """The same for Ray Train."""
        from ray.train import ScalingConfig  # takes more than a second, and only training needs it

        return ScalingConfig(
            num_workers=self.bounds or self.num_workers,
            use_gpu=self.use_gpu,
            resources_per_worker=self.resources(),
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        )


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
    if share < _MIN_CPUS or len(cluster.hosts) > 1 or bounds:
        each = "; workers whose number changes, or on several hosts, need a whole one each" if share >= _MIN_CPUS else ""
        have = f"the {hosts} has {cluster.total.get('CPU', 0):g} CPUs, {cpus:g} of them free"
        raise ResourceError(f"{asked}: {have}{each}; stop other jobs or ask for less")
    note = f"{workers} workers share {cpus:g} CPU cores: {share:g} of a core each, so expect no speed-up"
    return WorkerPlan(workers, share, cluster.has_gpus, note)


def plan_fixed_workers(num_workers: int) -> WorkerPlan:
    """Fits a fixed number of workers into the cluster as it is; waits for a moment where an earlier job still gives its resources back.

    Args:
        num_workers: as `--num-workers` says.

    Raises:
        ResourceError: as `plan_workers`; an autoscaler is not asked for more.
    """

    def attempt() -> WorkerPlan:
        return plan_workers((num_workers, num_workers), dataclasses.replace(Cluster.now(), grows=False))

    def others_use_it(error: BaseException) -> bool:
        cluster = Cluster.now()
        return isinstance(error, ResourceError) and any(cluster.free(name) < cluster.total.get(name, 0.0) for name in ("CPU", "GPU"))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(others_use_it),
        stop=tenacity.stop_after_delay(_RELEASE_TIMEOUT_S),
        wait=tenacity.wait_fixed(0.2),
        reraise=True,
    )(attempt)


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
    """A plan after a placement group was removed, which Ray's figures show only some time later."""
    poll: tenacity.Retrying = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda plan: plan.waits),
        stop=tenacity.stop_after_delay(_RELEASE_TIMEOUT_S),
        wait=tenacity.wait_fixed(0.1),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    plan: WorkerPlan = poll(lambda: plan_workers(asked, Cluster.now()))
    return plan


def await_release(before: Cluster) -> None:
    """Waits until as much is free again as before a job, so that the next job finds it; for some seconds at most."""

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
    """Waits until there is room for all workers at once; `False` if there never will be."""
    group = placement_group([plan.resources()] * plan.num_workers)  # which is what makes an autoscaler start hosts
    try:
        while not group.wait(_POLL_S):
            if private.is_infeasible(group):
                return False
        return True
    finally:
        remove_placement_group(group)

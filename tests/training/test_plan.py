"""How workers fit into a cluster, as numbers."""

from pathlib import Path

import pytest
import ray

from cifar_ray.cluster import plan as planner
from cifar_ray.cluster.hosts import check_shared_storage
from cifar_ray.cluster.plan import Cluster, plan_when_there, plan_workers
from cifar_ray.errors import ResourceError, StoreError
from cifar_ray.storage import FileTree
from cifar_ray.storage.probe import StorageProbe

CPUS, GPUS = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}


def cluster(*hosts: dict[str, float], grows: bool = False) -> Cluster:
    """All of it free."""
    return Cluster(hosts, {name: sum(host.get(name, 0.0) for host in hosts) for name in ("CPU", "GPU")}, grows)


@pytest.mark.parametrize(
    ("asked", "hosts", "workers", "cpus", "use_gpu"),
    [
        (None, [{"CPU": 8.0}], 1, 8.0, False),
        ((2, 2), [{"CPU": 8.0}], 2, 4.0, False),
        ((4, 4), [{"CPU": 2.0}], 4, 0.5, False),
        (None, [{"CPU": 0.7}], 1, 0.7, False),
        (None, [{"CPU": 32.0, "GPU": 4.0}], 4, 8.0, True),
        ((6, 6), [CPUS] * 3, 6, 2.0, False),
        ((7, 7), [CPUS] * 3, 7, 1.0, False),
        ((2, 2), [CPUS, {"CPU": 2.0}], 2, 2.0, False),
        (None, [CPUS, {"CPU": 2.0}], 1, 4.0, False),
        (None, [{}, GPUS, GPUS], 2, 8.0, True),
        ((2, 2), [{"CPU": 64.0}, GPUS, GPUS], 2, 8.0, True),
    ],
)
def test_workers_get_what_their_hosts_have(
    asked: tuple[int, int] | None, hosts: list[dict[str, float]], workers: int, cpus: float, use_gpu: bool
) -> None:
    plan = plan_workers(asked, cluster(*hosts))
    assert (plan.num_workers, plan.cpus, plan.use_gpu, plan.bounds) == (workers, cpus, use_gpu, None)
    assert plan.scaling_config().num_workers == workers


@pytest.mark.parametrize(
    ("asked", "hosts", "workers", "cpus"),
    [
        ((2, 8), [{"CPU": 2.0}], 2, 1.0),
        ((2, 8), [CPUS] * 3, 8, 1.0),
        ((1, 3), [CPUS] * 3, 3, 4.0),
        ((2, 8), [GPUS] * 3, 3, 8.0),
    ],
)
def test_as_many_elastic_workers_begin_as_there_is_room_for(
    asked: tuple[int, int], hosts: list[dict[str, float]], workers: int, cpus: float
) -> None:
    plan = plan_workers(asked, cluster(*hosts))
    assert (plan.num_workers, plan.cpus, plan.bounds) == (workers, cpus, asked)
    assert plan.scaling_config().num_workers == asked


@pytest.mark.parametrize(
    ("asked", "hosts"),
    [
        ((9, 9), [CPUS, CPUS]),
        ((5, 5), [{"CPU": 32.0, "GPU": 2.0}] * 2),
        ((2, 2), [{"CPU": 8.0, "GPU": 1.0}]),
        ((1, 1), [{}]),
        ((200, 200), [{"CPU": 2.0}]),
        ((3, 4), [{"CPU": 2.0}]),
    ],
)
def test_more_than_the_cluster_holds_is_refused_at_once(asked: tuple[int, int], hosts: list[dict[str, float]]) -> None:
    flag = "3:4" if asked == (3, 4) else str(asked[0])
    with pytest.raises(ResourceError, match=f"--num-workers {flag}: the cluster ") as refused:
        plan_workers(asked, cluster(*hosts))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "hosts", "workers", "use_gpu"),
    [
        ((4, 4), [{}, GPUS], 4, True),
        ((4, 4), [{}], 4, True),  # only the head is there, which computes nothing
        ((6, 6), [CPUS], 6, False),
        ((2, 8), [{}, GPUS], 2, True),
        (None, [{}], 1, True),
    ],
)
def test_where_an_autoscaler_may_start_hosts_workers_wait_for_them(
    asked: tuple[int, int] | None, hosts: list[dict[str, float]], workers: int, use_gpu: bool
) -> None:
    plan = plan_workers(asked, cluster(*hosts, grows=True))
    assert (plan.waits, plan.num_workers, plan.use_gpu) == (True, workers, use_gpu)
    assert not plan_workers((1, 1), cluster(GPUS, grows=True)).waits


def test_hosts_that_an_autoscaler_has_started_are_waited_for_once_though_ray_tells_late_that_they_are_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_use = [cluster({"CPU": 0.0}, grows=True)] * 4
    told, asked = [*in_use, cluster({"CPU": 2.0}, {"CPU": 2.0}, grows=True)], []
    monkeypatch.setattr(Cluster, "now", classmethod(lambda _: told.pop(0)))
    monkeypatch.setattr(planner, "_started", lambda plan: not asked.append(plan))
    said: list[str] = []
    plan = plan_when_there((2, 2), said.append)
    assert (plan.num_workers, plan.cpus, plan.waits) == (2, 2.0, False)
    assert len(asked) == len(said) == 1


@pytest.mark.ray
@pytest.mark.slow
def test_hosts_that_do_not_share_a_storage_are_found(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"NodeID": ray.get_runtime_context().get_node_id(), "Alive": True}
    monkeypatch.setattr(ray, "nodes", lambda: [here, here])
    check_shared_storage(StorageProbe.place(FileTree(str(tmp_path), "folder")), str(tmp_path), "folder")
    with pytest.raises(StoreError, match="does not see the files that host head wrote"):
        check_shared_storage(StorageProbe("another", "head"), str(tmp_path), "folder")

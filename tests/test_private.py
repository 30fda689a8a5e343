"""The private parts of Ray and torch that cluster/private.py uses are where it expects them, and it works without them."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group

from cifar_ray.cluster import private
from cifar_ray.cluster.failures import find_our_error, last_line, unwrap
from cifar_ray.errors import DataError, ResourceError, TrainingError

MOVED = [
    "ray._private.state",
    "ray.autoscaler.v2.utils",
    "ray.core.generated.autoscaler_pb2",
    "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
    "ray.train.v2._internal.execution.callback",
]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if Ray and torch had moved all of them."""
    for module in MOVED:
        monkeypatch.setitem(sys.modules, module, None)
    for owner, name in (
        (torch.cpu, "_is_avx512_bf16_supported"),
        (torch.cpu, "_is_amx_tile_supported"),
        (torch, "_foreach_copy_"),
        (torch, "_foreach_lerp_"),
    ):
        monkeypatch.delattr(owner, name)
    return


@pytest.mark.parametrize("name", MOVED)
def test_the_private_modules_of_ray_are_still_there(name: str) -> None:
    __import__(name)


def test_the_states_of_ray_trains_controller_are_still_there() -> None:
    states = private.controller_states()
    assert states is not None
    assert hasattr(states.callback, "after_controller_state_update")
    assert "scaling_decision" in states.resizes.__init__.__annotations__ | {"scaling_decision": None}


@pytest.mark.parametrize(("left_out", "name"), [("cleaner", "PlacementGroupCleanerCallback"), ("datasets", "DatasetsCallback")])
def test_processes_of_ray_train_are_left_out_only_in_the_block(left_out: str, name: str) -> None:
    from ray.train.v2.api import data_parallel_trainer

    original = getattr(data_parallel_trainer, name)
    with private.without_processes_of_train(**{"cleaner": False, "datasets": False, left_out: True}):
        assert not isinstance(getattr(data_parallel_trainer, name)(train_run_context=None, datasets={}), original)
    with private.without_processes_of_train(cleaner=False, datasets=False):
        assert getattr(data_parallel_trainer, name) is original


def test_a_block_runs_if_these_parts_of_ray_train_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2.api import data_parallel_trainer

    monkeypatch.delattr(data_parallel_trainer, "PlacementGroupCleanerCallback")
    with private.without_processes_of_train(cleaner=True, datasets=True):
        pass


def test_all_processes_of_a_started_cluster_but_the_state_server_are_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants, worker
    from ray._private.node import Node

    assert hasattr(Node, "kill_all_processes")
    killed: list[str] = []
    kinds = (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)
    started = {kind: [SimpleNamespace(process=SimpleNamespace(kill=lambda kind=kind: killed.append(kind)))] for kind in kinds}
    node = SimpleNamespace(all_processes=started, kill_all_processes=lambda **settings: killed.append(str(settings)))
    monkeypatch.setattr(worker, "_global_node", node)
    monkeypatch.setattr(ray, "shutdown", lambda: node.kill_all_processes(check_alive=False))
    private.stop_started_cluster()
    assert killed == ["raylet", "{'check_alive': False}"]


def test_a_started_cluster_is_stopped_by_ray_alone_if_this_part_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    stopped: list[bool] = []
    monkeypatch.setattr(worker, "_global_node", None)
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append(True))
    private.stop_started_cluster()
    assert stopped


def test_the_options_of_a_running_serve_are_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve import context
    from ray.serve._private.client import ServeControllerClient

    assert hasattr(ServeControllerClient, "http_config")
    monkeypatch.setattr(context, "_get_global_client", lambda: SimpleNamespace(http_config=SimpleNamespace(port=8123)))
    assert private.serve_port() == 8123
    monkeypatch.delattr(context, "_get_global_client")
    assert private.serve_port() is None


@pytest.mark.parametrize("name", ["_foreach_copy_", "_foreach_lerp_"])
def test_torchs_operations_on_many_tensors_are_still_there(name: str) -> None:
    assert hasattr(torch, name)


def test_the_digits_of_scikit_learn_are_still_there_and_are_found_without_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.datasets", None)
        found = private.digits_of_sklearn()
    monkeypatch.setattr(private, "find_spec", lambda name: None)
    assert np.array_equal(found, private.digits_of_sklearn())


def test_a_forgotten_proxy_of_a_host_is_ended_and_no_other() -> None:
    forgotten, other = (
        subprocess.Popen(["haproxy", "-c", "import time; time.sleep(60)", f"haproxy-serve/{node}/haproxy.cfg"], executable=sys.executable)
        for node in ("node-a", "node-b")
    )
    private.end_proxies("node-a")
    ended, lives = forgotten.wait(), other.poll() is None
    other.kill()
    other.wait()
    assert (ended, lives) == (-signal.SIGKILL, True)


def test_ray_still_keeps_the_address_of_its_cluster_in_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray._private.utils import write_ray_address

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert not private.current_cluster_address()
    (tmp_path / "ray").mkdir()
    write_ray_address("10.0.0.1:6379", str(tmp_path / "ray"))
    assert private.current_cluster_address() == "10.0.0.1:6379"


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_torchs_questions_about_the_processor_are_still_there(name: str) -> None:
    assert isinstance(getattr(torch.cpu, name)(), bool)


@pytest.mark.ray
def test_ray_still_answers_what_is_asked_of_it(ray_cluster: None) -> None:
    (host,) = private.free_resources_by_host()
    assert host["memory"] > 0
    assert host.get("CPU", 0) <= 2  # Ray leaves out what is in use
    assert private.autoscaler_is_on() is False
    assert private.start_coordinator() is not None
    private.refresh_hosts()
    group = placement_group([{"CPU": 1000}])
    assert private.is_infeasible(group) is False  # only an autoscaler says so
    remove_placement_group(group)


@pytest.mark.ray
def test_without_them_one_host_is_still_counted_and_nothing_else_is_lost(ray_cluster: None, moved: None) -> None:
    (host,) = private.free_resources_by_host()
    assert host["memory"] > 0
    assert private.autoscaler_is_on() is False
    assert private.start_coordinator() is None
    private.refresh_hosts()
    assert private.controller_states() is None
    assert private.is_infeasible(None) is False


def test_without_them_several_hosts_cannot_be_counted_and_the_error_says_so(moved: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}])
    with pytest.raises(ResourceError, match="does not report the free resources of each host; install a Ray version that"):
        private.free_resources_by_host()


def test_averages_are_the_same_bits_with_and_without_torchs_operations_on_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def averaged() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        averages, present = ([torch.randn(n, generator=generator) for n in (1, 7, 1000)] for _ in range(2))
        private.lerp_each(averages, present, 0.1)
        copies = [torch.zeros_like(tensor) for tensor in averages]
        private.copy_each(copies, averages)
        return copies

    together = averaged()
    monkeypatch.delattr(torch, "_foreach_copy_")
    monkeypatch.delattr(torch, "_foreach_lerp_")
    assert all(torch.equal(one, other) for one, other in zip(together, averaged(), strict=True))


def test_a_processor_that_cannot_be_asked_computes_in_fp32(moved: None) -> None:
    assert private.cpu_computes_bf16() is False


@pytest.mark.parametrize("name", ["cause", "_base_exc", "controller_failure"])
def test_our_error_is_found_however_ray_wraps_it(name: str) -> None:
    ours, outer = DataError("no pictures"), RuntimeError("outer")
    setattr(outer, name, RuntimeError("between"))
    getattr(outer, name).__cause__ = ours
    assert find_our_error(outer) is ours
    assert unwrap(outer, TrainingError) is ours


def test_of_rays_own_class_around_our_error_ours_is_taken() -> None:
    wrapped = RayTaskError("score", "Traceback …", DataError("no pictures")).as_instanceof_cause()
    assert isinstance(wrapped, DataError)
    assert str(find_our_error(wrapped)) == "no pictures"


def test_our_error_is_found_among_those_of_several_workers() -> None:
    error = RuntimeError("workers failed")
    error.worker_failures = {0: RuntimeError("lost"), 1: DataError("no pictures")}  # type: ignore[attr-defined]
    assert str(find_our_error(error)) == "no pictures"


def test_an_error_that_is_not_ours_becomes_one_line() -> None:
    error = RuntimeError("workers failed")
    error.worker_failures = {0: RuntimeError("Traceback:\n  line\nValueError: too small")}  # type: ignore[attr-defined]
    assert str(unwrap(error, lambda reason: TrainingError(f"training failed: {reason}"))) == "training failed: ValueError: too small"
    assert last_line("a\nray.exceptions.RayTaskError: b", with_class=False) == "b"


def test_errors_that_refer_to_each_other_are_searched_once() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert find_our_error(one) is None
    assert find_our_error(SimpleNamespace(__cause__=None)) is None  # type: ignore[arg-type]


def test_grad_scaler_gives_optimizers_the_overflow_as_a_tensor() -> None:
    weights = torch.nn.Parameter(torch.ones(2))
    seen: list[torch.Tensor] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            seen.append(self.found_inf)

    optimizer = Watching([weights], lr=0.1)
    private.handles_overflows(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((weights * float("inf")).sum()).backward()
    scaler.step(optimizer)
    assert [float(one) for one in seen] == [1.0]

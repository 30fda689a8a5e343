"""Private parts of Ray, torch and scikit-learn that the project needs; no other module imports them.

Each docstring gives the purpose of the part, and the fallback or error if it has moved.
`tests/test_private.py` fails as soon as a part has moved.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_ray.errors import ResourceError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from ray.util.placement_group import PlacementGroup
    from torch import Tensor

_CLUSTER_STATUS_TIMEOUT_S = 10
_COORDINATOR_TIMEOUT_S = 10.0
_STATE_SERVER = "gcs_server"


def free_resources_by_host() -> list[dict[str, float]]:
    """Free resources of each host; Ray's public API returns only their sum.

    Fallback: the sum, which is exact for one host.

    Raises:
        ResourceError: on several hosts, if the private part has moved.
    """
    import ray

    try:
        from ray._private.state import available_resources_per_node
    except ImportError:
        if sum(node["Alive"] for node in ray.nodes()) > 1:
            raise ResourceError(
                f"Ray {ray.__version__} does not report the free resources of each host; install a Ray version that pyproject.toml allows"
            ) from None
        return [ray.available_resources()]
    return list(available_resources_per_node().values())


def current_cluster_address() -> str:
    """Address of the cluster that this machine joined with `ray start`, from Ray's file; empty if there is no file.

    Ray reads the file in `ray.init()`, after an import that takes more than a second. Fallback: empty, so `--cluster ADDRESS` must be
    passed.
    """
    try:
        return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text(encoding="ascii").strip()  # noqa: S108
    except (OSError, ValueError):
        return ""


def digits_of_sklearn() -> npt.NDArray[np.float64]:
    """The digits of scikit-learn, float64 `[N, 65]`: rows of 64 shades, 0–16, and a label.

    They are read from the file of `load_digits`, whose import takes more than a second.

    Fallback: `load_digits`.
    """
    import numpy as np

    spec = find_spec("sklearn")
    folders = (spec.submodule_search_locations if spec else None) or []
    for path in (Path(folder, "datasets", "data", "digits.csv.gz") for folder in folders):
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack((digits.data, digits.target))


def autoscaler_is_on() -> bool:
    """Whether an autoscaler may add hosts; Ray has no public API for this. Fallback: `False`, so a job that is too large fails at once."""
    try:
        from ray.autoscaler.v2.utils import is_autoscaler_v2
    except ImportError:
        return False
    return bool(is_autoscaler_v2(fetch_from_server=True))


def is_infeasible(group: PlacementGroup) -> bool:
    """Whether the autoscaler reports that it can never place a group; `ray status` prints this, but no public function returns it.

    Fallback: `False`, so the job waits until it is stopped.
    """
    try:
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
        from ray.experimental.internal_kv import internal_kv_get_gcs_client
    except ImportError:
        return False
    status = GetClusterStatusReply.FromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=_CLUSTER_STATUS_TIMEOUT_S))
    infeasible = status.autoscaling_state.infeasible_gang_resource_requests
    return any(request.details.startswith(group.id.hex()) for request in infeasible)


def start_coordinator() -> Any:
    """Start the actor in which Ray Train counts resources, or find it; Ray Train's controller would start it and wait for it.

    Fallback: `None`, so a training starts a second later.
    """
    try:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
    except ImportError:
        return None
    return get_or_create_autoscaling_coordinator()


def refresh_hosts() -> None:
    """Make Ray Train count the hosts now; it counts them only every 20 s, and until then starts workers on lost hosts.

    Fallback: do nothing, so new workers start up to a minute later.
    """
    import ray

    coordinator = start_coordinator()
    if coordinator is None:
        return
    try:
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=_COORDINATOR_TIMEOUT_S)
    except ray.exceptions.RayError:
        return


@dataclass(frozen=True)
class ControllerStates:
    """Ray Train's class for controller callbacks, and the controller states to which our callback reacts."""

    callback: type
    ends_workers: tuple[type, ...]
    resizes: type
    restarts: type


def controller_states() -> ControllerStates | None:
    """Classes for a callback on the states of Ray Train's controller; public callbacks only receive reports and errors.

    Fallback: `None`; workers then do not save before Ray stops them on purpose, and resume from their last checkpoint.
    """
    try:
        from ray.train.v2._internal.execution.callback import ControllerCallback
        from ray.train.v2._internal.execution.controller.state import PreemptingState, ResizingState, RestartingState
    except ImportError:
        return None
    return ControllerStates(ControllerCallback, (ResizingState, PreemptingState), ResizingState, RestartingState)


@contextmanager
def without_processes_of_train(*, cleaner: bool, datasets: bool) -> Iterator[None]:
    """Start trainings without processes of Ray Train that they do not need; each takes more than a second to start.

    * The cleaner frees the resources of a training whose controller dies. A cluster that ends with this program does not need it. If
      another cluster runs on the machine, it asks that one about the controller, takes the controller for dead, and stops the workers.
    * The dataset manager divides the data of Ray Data among the workers.

    Fallback: they are started.

    Args:
        cleaner: whether to leave out the cleaner.
        datasets: whether to leave out the dataset manager.
    """
    left_out = [name for name, wanted in (("PlacementGroupCleanerCallback", cleaner), ("DatasetsCallback", datasets)) if wanted]
    try:
        from ray.train.v2._internal.execution.callback import ControllerCallback
        from ray.train.v2.api import data_parallel_trainer

        originals = {name: getattr(data_parallel_trainer, name) for name in left_out}
    except (ImportError, AttributeError):
        yield
        return
    for name in originals:
        setattr(data_parallel_trainer, name, lambda **_: ControllerCallback())
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(data_parallel_trainer, name, original)


def stop_started_cluster() -> None:
    """Shut Ray down, and kill most of the processes that it started at once.

    Ray gives each of its five processes, one after the other, a second to react to SIGTERM, which ours block, see `ray_cluster`. Only the
    server of the cluster's state (GCS) needs this second: the other processes of the host ask it before they end.
    Fallback: all five take their second.
    """
    import ray

    with suppress(ImportError, AttributeError):
        from ray._private import worker

        node: Any = worker._global_node
        stop = node.kill_all_processes

        def kill_and_stop(**settings: Any) -> None:
            for kind, started in node.all_processes.items():
                for information in started if kind != _STATE_SERVER else ():
                    information.process.kill()
            stop(**settings)

        node.kill_all_processes = kill_and_stop
    ray.shutdown()


def end_proxies(node_id: str) -> None:
    """Kill the HAProxy processes of a host whose cluster has ended: Ray Serve leaves a process running that it was just replacing.

    The command lines of the processes contain the id of the host. Fallback: they keep running, and occupy their ports.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"haproxy" in command.partition(b"\0")[0] and node_id.encode() in command:
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:  # the process has ended, or belongs to another user
            continue


def serve_port() -> int | None:
    """Port of the Ray Serve to which this process is connected; the public `serve.start` ignores the port if Serve runs already.

    Fallback: `None`, so a server that listens elsewhere is only noticed because it does not answer.
    """
    from ray.exceptions import RayError

    try:
        from ray.serve.context import _get_global_client

        return int(_get_global_client().http_config.port)
    except (ImportError, AttributeError, TypeError, RayError):
        return None


def causes_of(error: BaseException) -> Sequence[BaseException]:
    """Causes of a Ray error, from its attributes, some of which are private, and from `__cause__`."""
    names = ("cause", "_base_exc", "controller_failure")
    found = [getattr(error, name, None) for name in names] + list(getattr(error, "worker_failures", {}).values())
    return [cause for cause in (*found, error.__cause__) if isinstance(cause, BaseException)]


def cpu_computes_bf16() -> bool:
    """Whether the CPU has bf16 arithmetic; only private functions of torch check this. Fallback: `False`, so fp32 is used."""
    import torch

    checks: list[Callable[[], bool] | None] = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(check() for check in checks if check is not None)


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """`target.copy_(source)` for many tensors in one call, as in torch's optimizers. Fallback: one call per tensor."""
    import torch

    foreach: Any = getattr(torch, "_foreach_copy_", None)
    if foreach is not None:
        foreach(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def lerp_each(targets: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """`target.lerp_(end, weight)` for many tensors in one call. Fallback: one call per tensor."""
    import torch

    foreach: Any = getattr(torch, "_foreach_lerp_", None)
    if foreach is not None:
        foreach(targets, ends, weight)
        return
    for target, end in zip(targets, ends, strict=True):
        target.lerp_(end, weight)


def handles_overflows(optimizer: Any) -> None:
    """Make `GradScaler` give an optimizer `grad_scale` and `found_inf` as tensors, as it does for torch's fused optimizers.

    Fallback: `GradScaler` checks for an overflow on the host, and then skips the step itself.
    """
    optimizer._step_supports_amp_scaling = True

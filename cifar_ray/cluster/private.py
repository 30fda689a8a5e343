"""The private parts of Ray and torch that the project needs: nothing else imports them.

Each function says what the part is for, and what happens where it has moved: a fallback, or a clear error.
`tests/test_private.py` fails as soon as one of them has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cifar_ray.errors import ResourceError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup
    from torch import Tensor

_CLUSTER_STATUS_TIMEOUT_S = 10
_COORDINATOR_TIMEOUT_S = 10.0


def free_resources_by_host() -> list[dict[str, float]]:
    """Free resources of each host; Ray's public API gives only their sum.

    Fallback: that sum, which is exact on one host.

    Raises:
        ResourceError: on several hosts, if the private part has moved.
    """
    import ray

    try:
        from ray._private.state import available_resources_per_node
    except ImportError:
        if sum(node["Alive"] for node in ray.nodes()) > 1:
            raise ResourceError(
                f"Ray {ray.__version__} does not tell what is free on each host; install a Ray version that pyproject.toml allows"
            ) from None
        return [ray.available_resources()]
    return list(available_resources_per_node().values())


def autoscaler_is_on() -> bool:
    """Whether an autoscaler may add hosts; there is no public way to ask. Fallback: no, so that too large a job is refused at once."""
    try:
        from ray.autoscaler.v2.utils import is_autoscaler_v2
    except ImportError:
        return False
    return bool(is_autoscaler_v2(fetch_from_server=True))


def is_infeasible(group: PlacementGroup) -> bool:
    """Whether the autoscaler says that it may never place this group; `ray status` prints it, no public function returns it.

    Fallback: no, so the job waits until it is stopped.
    """
    try:
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
        from ray.experimental.internal_kv import internal_kv_get_gcs_client
    except ImportError:
        return False
    status = GetClusterStatusReply.FromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=_CLUSTER_STATUS_TIMEOUT_S))
    infeasible = status.autoscaling_state.infeasible_gang_resource_requests
    return any(request.details.startswith(group.id.hex()) for request in infeasible)


def refresh_hosts() -> None:
    """Makes Ray Train count the hosts now. It does so every 20 s, and until then starts workers on hosts that are gone.

    Fallback: nothing, so new workers start up to a minute later.
    """
    import ray

    try:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
    except ImportError:
        return
    coordinator = get_or_create_autoscaling_coordinator()
    try:
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=_COORDINATOR_TIMEOUT_S)
    except ray.exceptions.RayError:
        return


@dataclass(frozen=True)
class ControllerStates:
    """Ray Train's class for callbacks in its controller, and the states that ours reacts to."""

    callback: type
    ends_workers: tuple[type, ...]
    resizes: type
    restarts: type


def controller_states() -> ControllerStates | None:
    """What a callback for the states of Ray Train's controller needs; the public callbacks hear of reports and errors only.

    Fallback: `None`; workers are then not asked to save before Ray ends them on purpose, and continue from their last checkpoint.
    """
    try:
        from ray.train.v2._internal.execution.callback import ControllerCallback
        from ray.train.v2._internal.execution.controller.state import PreemptingState, ResizingState, RestartingState
    except ImportError:
        return None
    return ControllerStates(ControllerCallback, (ResizingState, PreemptingState), ResizingState, RestartingState)


def causes_of(error: BaseException) -> Sequence[BaseException]:
    """The errors that a Ray error was raised for: in attributes of its own, not all of them public, and then as Python has it."""
    names = ("cause", "_base_exc", "controller_failure")
    found = [getattr(error, name, None) for name in names] + list(getattr(error, "worker_failures", {}).values())
    return [cause for cause in (*found, error.__cause__) if isinstance(cause, BaseException)]


def cpu_computes_bf16() -> bool:
    """Whether the processor has bf16 arithmetic; torch asks it in private functions only. Fallback: no, so fp32 is used."""
    import torch

    checks: list[Callable[[], bool] | None] = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(check() for check in checks if check is not None)


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """`target.copy_(source)` for many tensors in one call, as torch's optimizers do. Fallback: one call a tensor."""
    import torch

    together: Any = getattr(torch, "_foreach_copy_", None)
    if together is not None:
        together(targets, sources)
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def lerp_each(targets: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """`target.lerp_(end, weight)` for many tensors in one call. Fallback: one call a tensor."""
    import torch

    together: Any = getattr(torch, "_foreach_lerp_", None)
    if together is not None:
        together(targets, ends, weight)
        return
    for target, end in zip(targets, ends, strict=True):
        target.lerp_(end, weight)

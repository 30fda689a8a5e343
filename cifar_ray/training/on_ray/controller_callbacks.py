"""What this project adds to Ray Train's controller, the actor that starts workers and starts them again."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import train
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState, ResizingState, RestartingState

from cifar_ray.errors import CifarRayError
from cifar_ray.training.on_ray.channel import Line

_LOOK_S = 1.0
_ANSWER_S = 10.0


class UserErrors(train.UserCallback):  # type: ignore[misc]
    """Ends a run whose workers raise one of our own errors: trying again would not help, as it does where a worker is lost."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """As Ray asks; what is raised here ends the run."""
        del run_context
        for error in worker_exceptions.values():
            if found := own_error(error):
                raise found


class Changes(ControllerCallback):  # type: ignore[misc]
    """Has workers save before they are ended on purpose, and sees to it that their next number goes by the hosts that are left.

    Args:
        line: to rank 0, who saves, and to the driver, who is told.
        patience_s: a checkpoint that takes longer is not waited for.
    """

    def __init__(self, line: Line, patience_s: float) -> None:
        self._line, self._patience_s = line, patience_s
        self._waits = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """As Ray asks."""
        if isinstance(current_state, (ResizingState, PreemptingState)) and type(current_state) is not type(previous_state):
            self._line.ask_to_save(self._patience_s)
            if isinstance(current_state, ResizingState):
                self._line.tell("resize", current_state.scaling_decision.num_workers)
        waits = current_state is previous_state  # for as many hosts as it takes
        if waits:
            if not self._waits:
                self._line.tell("wait", None)
            time.sleep(_LOOK_S)  # Ray itself looks without a pause
        self._waits = waits
        if waits or isinstance(current_state, RestartingState):
            _look_at_hosts()


def _look_at_hosts() -> None:
    """Ray does so every 20 s; until then it would start workers on hosts that are gone, and wait for them a minute."""
    coordinator = get_or_create_autoscaling_coordinator()
    try:
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=_ANSWER_S)
    except RayError:
        return


def own_error(error: BaseException) -> CifarRayError | None:
    """The error of ours that another one was raised for."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CifarRayError):
            return cause
        cause = getattr(cause, "_base_exc", None) or getattr(cause, "controller_failure", None) or cause.__cause__
    return None

"""What this project adds to Ray Train's controller, the actor that starts and restarts workers."""

from __future__ import annotations

import time
from typing import Any

from ray import train

from cifar_ray.cluster.failures import find_our_error
from cifar_ray.cluster.private import ControllerStates, controller_states, refresh_hosts
from cifar_ray.training.on_ray.channel import Channel

_POLL_S = 1.0


class EndOnOurErrors(train.UserCallback):  # type: ignore[misc]
    """Ends a run whose workers raise one of our own errors: a retry helps only where a worker was lost."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises our error, which ends the run: Ray retries no error of its controller."""
        del run_context
        for error in worker_exceptions.values():
            if found := find_our_error(error):
                raise found


class SaveBeforeChange:
    """Makes workers save before Ray ends them on purpose, and makes their next number follow the hosts that are left.

    Args:
        channel: to rank 0, which saves, and to the driver, which is informed.
        timeout_s: longest wait for the checkpoint.
        states: Ray Train's.
    """

    def __init__(self, channel: Channel, timeout_s: float, states: ControllerStates) -> None:
        self._channel, self._timeout_s, self._states = channel, timeout_s, states
        self._waits = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray after each step of its controller."""
        decision = getattr(current_state, "scaling_decision", None)
        if isinstance(current_state, self._states.ends_workers) and type(current_state) is not type(previous_state):
            self._channel.request_save(self._timeout_s)
            if isinstance(current_state, self._states.resizes):
                self._channel.send("resize", decision.num_workers if decision else None)
        waits = current_state is previous_state  # until there are enough hosts
        if waits:
            if not self._waits:
                self._channel.send("wait", None)
            time.sleep(_POLL_S)  # Ray itself polls without a pause
        self._waits = waits
        if waits or isinstance(current_state, self._states.restarts):
            refresh_hosts()


def create_callbacks(channel: Channel, timeout_s: float) -> list[Any]:
    """The callbacks of one run.

    Args:
        channel: of the run.
        timeout_s: longest wait for a checkpoint before workers are ended.
    """
    states = controller_states()
    if states is None:
        channel.send(
            "message", "this Ray version does not say when it changes the number of workers: they restart from their last checkpoint"
        )
        return [EndOnOurErrors()]
    callback = type("RaySaveBeforeChange", (SaveBeforeChange, states.callback), {})
    return [EndOnOurErrors(), callback(channel, timeout_s, states)]

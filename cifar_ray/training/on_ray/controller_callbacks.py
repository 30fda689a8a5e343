"""Callbacks in Ray Train's controller, the actor that starts and restarts workers."""

from __future__ import annotations

import time
from typing import Any

from ray import train

from cifar_ray.cluster.failures import find_our_error
from cifar_ray.cluster.private import ControllerStates, controller_states, refresh_hosts
from cifar_ray.training.on_ray.channel import Channel

_POLL_S = 1.0


class EndOnOurErrors(train.UserCallback):  # type: ignore[misc]
    """Ends a run after a `CifarRayError` in a worker, because a retry would fail in the same way."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the worker's error, which ends the run: Ray does not retry errors of its controller."""
        del run_context
        for error in worker_exceptions.values():
            if found := find_our_error(error):
                raise found


class SaveBeforeChange:
    """Makes workers save before Ray stops them on purpose, and updates the number of hosts before a restart.

    Args:
        channel: channel to rank 0, which saves, and to the driver.
        timeout_s: maximum wait for the checkpoint.
        states: Ray Train's controller states.
    """

    def __init__(self, channel: Channel, timeout_s: float, states: ControllerStates) -> None:
        self._channel, self._timeout_s, self._states = channel, timeout_s, states
        self._waits = False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Request a checkpoint before a planned stop, and report that the run waits for hosts; Ray calls this in each controller step."""
        decision = getattr(current_state, "scaling_decision", None)
        if isinstance(current_state, self._states.ends_workers) and type(current_state) is not type(previous_state):
            self._channel.request_save(self._timeout_s)
            if isinstance(current_state, self._states.resizes):
                self._channel.send("resize", decision.num_workers if decision else None)
        waits = current_state is previous_state  # until the cluster has enough hosts
        if waits:
            if not self._waits:
                self._channel.send("wait", None)
            time.sleep(_POLL_S)  # Ray itself polls without a pause
        self._waits = waits
        if waits or isinstance(current_state, self._states.restarts):
            refresh_hosts()


def create_callbacks(channel: Channel, timeout_s: float) -> list[Any]:
    """Create the callbacks of one run.

    Args:
        channel: channel of the run.
        timeout_s: maximum wait for a checkpoint before Ray stops the workers.
    """
    states = controller_states()
    if states is None:
        channel.send(
            "message",
            "this Ray version does not announce changes of the number of workers: after a change they resume from the last checkpoint",
        )
        return [EndOnOurErrors()]
    watch = type("RaySaveBeforeChange", (SaveBeforeChange, states.callback), {})
    return [EndOnOurErrors(), watch(channel, timeout_s, states)]

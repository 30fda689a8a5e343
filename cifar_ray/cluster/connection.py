"""Connect to a running Ray cluster, or start one on this machine for the duration of a job."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from cifar_ray.cluster.need import belongs_to_cluster
from cifar_ray.cluster.private import stop_started_cluster
from cifar_ray.cluster.process import prepare_children
from cifar_ray.errors import ResourceError

_ANSWER_S = 5.0


@contextmanager
def ray_cluster(choice: str = "auto", shows_logs: bool = False) -> Iterator[bool]:
    """Connect to a running cluster, or start one on this machine and stop it at the end of the block.

    Args:
        choice: `auto`: a running cluster, else a started one; `start`: a started one; or the address of a cluster.
        shows_logs: whether to show the output of the workers, as for the log of a server.

    Yields:
        Whether the cluster was started here, and ends with the block.

    Raises:
        ResourceError: if there is no cluster at the address, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        yield False
        return
    if not shows_logs:  # a computing job, not a server
        prepare_children()
    _check_answers(_address(choice), f"--cluster {choice}" if choice != "auto" else "RAY_ADDRESS")
    # A job scheduler often sends SIGTERM to all processes of a job. Ray's processes inherit the blocked signal, so that workers can save.
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    address: str | None = choice
    try:
        if choice in ("auto", "start"):
            # a file may still contain the address of a cluster that has ended, to which Ray would try to connect
            address = None if choice == "auto" and belongs_to_cluster() else "local"
            ray.init(address=address, include_dashboard=False, log_to_driver=shows_logs, logging_level="error")
        else:
            ray.init(address=choice, log_to_driver=shows_logs, logging_level="error")
    except Exception as error:  # Ray raises a dozen exceptions, whose tracebacks do not help a user
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ResourceError(f"Ray {'did not start' if _address(choice) is None else 'could not be reached'}: {reason}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
    try:
        yield address == "local"
    finally:
        if address == "local":
            stop_started_cluster()
        else:
            ray.shutdown()


def _address(choice: str) -> str | None:
    """Address of the chosen cluster; `None` if Ray looks for a cluster on this machine, or starts one."""
    if choice == "start":
        return None
    address = os.environ.get("RAY_ADDRESS", "") if choice == "auto" else choice
    return None if address in ("", "auto", "local") else address


def _check_answers(address: str | None, setting: str) -> None:
    """Raise an error if nothing listens at an address. Ray itself would retry for a minute, and print errors of its libraries."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\]]+?)\]?:(\d+)", address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), _ANSWER_S).close()
    except OSError as error:
        reason, advice = error.strerror or str(error), "`ray status` on the cluster tells its address"
        raise ResourceError(f"{setting}: no Ray cluster answers at {address} ({reason}); {advice}") from None

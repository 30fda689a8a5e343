"""Connect to a running Ray cluster, or start one on this machine for the duration of a job."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from cifar_ray.cluster.process import prepare_children
from cifar_ray.errors import ResourceError


@contextmanager
def ray_cluster(choice: str = "auto", shows_logs: bool = False) -> Iterator[None]:
    """Connect to a running cluster, or start one on this machine and stop it at the end of the block.

    Args:
        choice: `auto`: a running cluster, else a started one; `start`: a started one; or the address of a cluster.
        shows_logs: whether what the workers print appears here, as a server's log should.

    Raises:
        ResourceError: if there is no cluster at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if not shows_logs:  # a job that computes
        prepare_children()
    # A job scheduler often sends SIGTERM to all processes of a job. Ray's processes inherit the blocked signal, so that workers can save.
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        if choice in ("auto", "start"):
            address = None if choice == "auto" else "local"
            ray.init(address=address, include_dashboard=False, log_to_driver=shows_logs, logging_level="error")
        else:
            ray.init(address=choice, log_to_driver=shows_logs, logging_level="error")
    except (ConnectionError, ValueError) as error:
        if choice in ("auto", "start"):
            raise
        reason = str(error).partition("\n")[0]
        raise ResourceError(
            f"--cluster {choice}: no Ray cluster answers ({reason}); `ray status` on the cluster tells its address"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
    try:
        yield
    finally:
        ray.shutdown()

"""Connect to a running Ray cluster, or start one on this machine for the duration of a job."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cifar_ray.cluster.process import prepare_children


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect to a running cluster, or start one on this machine and stop it at the end of the block."""
    if ray.is_initialized():
        yield
        return
    prepare_children()
    # A job scheduler often sends SIGTERM to all processes of a job. Ray's processes inherit the blocked signal, so that workers can save.
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
    try:
        yield
    finally:
        ray.shutdown()

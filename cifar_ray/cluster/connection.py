"""Connects to a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cifar_ray.cluster.process import prepare_children


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A connection to a running cluster, or a cluster on this machine for the time of the run."""
    if ray.is_initialized():
        yield
        return
    prepare_children()
    # Who ends a job often tells all of its processes. Ray's own inherit that they do not hear of SIGTERM, so that workers can still save.
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
    try:
        yield
    finally:
        ray.shutdown()

"""Decide whether a job needs a Ray cluster, or one process is enough. Imports no Ray."""

from __future__ import annotations

import os
import socket
import sys

from cifar_ray.cluster.private import current_cluster_address
from cifar_ray.errors import ConfigError

_ANSWER_S = 1.0


def needs_cluster(choice: str, workers: tuple[int, int] | None, gpus: int) -> bool:
    """Whether a job runs on a Ray cluster.

    Args:
        choice: value of `--cluster`.
        workers: minimum and maximum number of workers; `None` for one per GPU.
        gpus: number of GPUs of this machine.

    Raises:
        ConfigError: if several workers are requested in one process.
    """
    if choice == "local":
        if workers is not None and workers[1] > 1:
            raise ConfigError(
                f"--cluster local: one process has one worker, not --num-workers {workers[1]}; leave out --cluster, or pass --cluster start"
            )
        return False
    return choice != "auto" or (workers[1] if workers else gpus) > 1 or belongs_to_cluster()


def belongs_to_cluster() -> bool:
    """Whether `ray.init()` would find a cluster: this process is connected, `RAY_ADDRESS` is set, or this machine belongs to a cluster."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        return address != "local"
    connected = getattr(sys.modules.get("ray"), "is_initialized", None)
    return (connected is not None and connected()) or _answers(current_cluster_address())


def _answers(address: str) -> bool:
    """Whether a cluster listens at an address; Ray's file may still contain the address of a cluster that has ended."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError:
        return False
    return True

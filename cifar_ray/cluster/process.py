"""Threads, memory and priority of a process that computes with torch."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from cifar_ray.config.base import PriorityName

_LOWEST_PRIORITY = 19
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # constants of glibc's malloc.h


def usable_cores() -> int:
    """Number of CPU cores that this process may use: the cores of its affinity, or fewer if its container has a limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no limit, or "max"
        return cores


def prepare_process(threads: int | None = None) -> None:
    """Set torch's threads, and make the C library keep the memory of freed tensors.

    Every training step allocates the same large blocks again. By default, glibc returns each block to the kernel and requests it again.
    On a CPU this costs a tenth of the time of a large network, and a third of the time of a small network.

    Args:
        threads: number of threads of torch's operations; `None` keeps the present number, by default all cores.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # by default large blocks are mapped, and unmapped when freed
        mallopt(_M_TRIM_THRESHOLD, -1)


def lower_priority(priority: PriorityName) -> None:
    """Lower the priority of this thread, the main thread, and the threads that they start; this cannot be undone.

    Ray starts all its workers, also those of a server, at niceness 15. A process with the highest niceness, 19, still gets 0.4 of the time
    of such a worker, so niceness alone hardly protects a server.

    Args:
        priority: `idle` computes only while no other process wants the core; with Linux's scheduling policy for idle processes, other
            processes also interrupt it at once. `low` is niceness 19. `normal` changes nothing.
    """
    if priority == "normal":
        return
    # On Linux, each thread has its own priority, which the threads that it starts inherit. An actor of Ray Data is constructed, and
    # computes, in another thread than the main thread, which imports modules. Ray's own threads keep their priority, and so its heartbeats.
    for thread in (0, os.getpid()):  # 0: this thread
        os.setpriority(os.PRIO_PROCESS, thread, _LOWEST_PRIORITY)
        if priority == "idle" and hasattr(os, "sched_setscheduler"):
            with suppress(OSError):  # a container may forbid it
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def prepare_children() -> None:
    """Make the C library of future child processes use one heap with huge pages, unless the user has set `GLIBC_TUNABLES`.

    By default, each further thread has its own heap, in pieces of 64 MB that return to the kernel despite `prepare_process`.
    Huge pages need fewer entries in the processor's translation cache. glibc reads this variable once, at the start of a process;
    other C libraries ignore it.
    """
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1")

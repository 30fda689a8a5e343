"""Threads and memory settings of a process that computes with torch."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from cifar_ray.config.base import PriorityName

_LOWEST_PRIORITY = 19
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def usable_cores() -> int:
    """Number of CPU cores that this process may use: those of its affinity, or fewer where its container has a limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no limit, or "max"
        return cores


def prepare_process(threads: int | None = None) -> None:
    """Set torch's threads, and make the C library keep the memory of freed tensors.

    Every training step allocates the same large blocks again. By default glibc returns each to the kernel and requests it again,
    which on a CPU costs a tenth of the time of a large network and a third of the time of a small one.

    Args:
        threads: threads of torch's operations; `None` keeps the present number, by default all cores.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # by default large blocks are mapped, and unmapped when freed
        mallopt(_M_TRIM_THRESHOLD, -1)


def lower_priority(priority: PriorityName) -> None:
    """Let this thread, the main one and those that they start give way to others; it cannot be undone.

    Ray starts all its workers, those of a server too, at niceness 15. The highest, 19, gives a process 0.4 of their time, so niceness alone
    hardly protects a server.

    Args:
        priority: `idle` computes only while no other process wants the core: Linux's scheduling policy for idle processes also lets others
            interrupt it at once. `low` is niceness 19. `normal` changes nothing.
    """
    if priority == "normal":
        return
    # On Linux, each thread has a priority of its own, which threads inherit that it starts. An actor of Ray Data is constructed, and
    # computes, in a thread beside the main one, which imports; the threads of Ray itself stay as they are, so that its heartbeats do.
    for thread in (0, os.getpid()):  # 0: this one
        os.setpriority(os.PRIO_PROCESS, thread, _LOWEST_PRIORITY)
        if priority == "idle" and hasattr(os, "sched_setscheduler"):
            with suppress(OSError):  # a container may forbid it
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


def prepare_children() -> None:
    """Make the C library of future child processes use one heap with huge pages, unless the user has set `GLIBC_TUNABLES`.

    Each further thread has its own heap by default, in pieces of 64 MB that return to the kernel despite the settings above.
    Huge pages need fewer entries in the processor's translation cache. glibc reads this variable once, at the start of a process;
    other C libraries ignore it.
    """
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1")

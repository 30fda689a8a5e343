"""How a process that computes with torch uses the machine."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_process(threads: int | None = None) -> None:
    """Sets torch's threads, and has the C library keep the memory of tensors that were freed.

    Every step of a training asks for the same large blocks again. glibc's way is to give each back and to fetch it anew,
    which on a CPU costs a tenth of the time of a large network and a third of that of a small one.

    Args:
        threads: for torch's operations; `None` leaves them as they are, by default all cores.
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # else large blocks are mapped, and unmapped when freed
        mallopt(_M_TRIM_THRESHOLD, -1)


def prepare_children() -> None:
    """Has the C library of processes that are started from now on keep one heap, of large pages, unless the user has settings of his own.

    A thread that is not the main one has a heap of its own, in pieces of 64 MB that go back to the kernel whatever was said above;
    and with large pages the processor's notes of where they are fit into its cache. glibc reads this once, when a process starts;
    elsewhere nobody reads it.
    """
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1")

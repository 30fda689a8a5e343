"""What a process keeps and how many threads it takes."""

import ctypes
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from cifar_ray.compute import prepare_process
if sys.argv[1] == "prepared":
    prepare_process(1)
for _ in range(10):
    torch.empty(1 << 24).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(1 << 24).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_a_prepared_process_fetches_the_memory_of_freed_tensors_once() -> None:
    faults, threads = map(int, subprocess.check_output([sys.executable, "-c", FAULTS, "prepared"], text=True).split())
    assert threads == 1
    assert faults < (4 << 24) / resource.getpagesize(), "ten tensors took less than the pages of one"

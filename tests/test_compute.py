"""What memory a process keeps."""

import ctypes
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource
from cifar_ray.compute import prepare_process
prepare_process()
for _ in range(10):
    b"x" * (1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * (1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_a_prepared_process_fetches_the_memory_of_freed_tensors_once() -> None:
    faults = int(subprocess.check_output([sys.executable, "-c", FAULTS], text=True))
    assert faults < (4 << 24) / resource.getpagesize(), "ten tensors took less than the pages of one"

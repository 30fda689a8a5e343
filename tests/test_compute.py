"""What memory a process keeps."""

import ctypes
import os
import resource
import subprocess
import sys

import pytest

from cifar_ray.cluster.process import prepare_children

FAULTS = """
import resource, threading
from cifar_ray.cluster.process import prepare_process

def step():
    blocks = [b"x" * (1 << 23) for _ in range(16)]
    blocks += [b"x" * (1 << 26)]

def train():
    prepare_process()
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
IN_A_THREAD = "thread = threading.Thread(target=train); thread.start(); thread.join()"
PAGES_OF_A_STEP = (16 * (1 << 23) + (1 << 26)) / resource.getpagesize()
needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")


def faults(code: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", FAULTS + code], text=True))


@needs_glibc
def test_a_prepared_process_fetches_the_memory_of_freed_tensors_once() -> None:
    assert faults("train()") < PAGES_OF_A_STEP, "ten steps took less than the pages of one"


@needs_glibc
def test_so_does_a_thread_of_a_process_that_a_prepared_one_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # put back afterwards, whatever the function does
    monkeypatch.delenv("GLIBC_TUNABLES")
    prepare_children()
    assert faults(IN_A_THREAD) < PAGES_OF_A_STEP


def test_settings_of_the_users_own_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    prepare_children()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=3"

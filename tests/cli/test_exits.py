"""The end of a program: threads and registered functions run, and nothing else takes time."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import atexit, sys, threading, time
from cifar_ray import cli

class Kept:
    def __del__(self):
        print("freed")

kept = Kept()
kept.itself = kept  # only Python's own end would free it
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
cli.end(3)
"""


def test_a_program_waits_for_threads_and_registered_functions_and_frees_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (3, ["thread", "registered"], "")


def test_output_that_nobody_reads_is_not_a_success() -> None:
    script = "from cifar_ray import cli\nprint('x' * 10)\ncli.end(0)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", script], env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (120, b"")


def test_a_command_that_has_closed_its_output_has_lost_none() -> None:
    script = "import sys\nfrom cifar_ray import cli\nprint('x')\nsys.stdout.close()\ncli.end(0)"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")

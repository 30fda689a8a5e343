"""A training that is started on the head and goes on beside the test, and what its folder tells of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.cluster.conftest import RAY_DEFAULTS, STORAGE, Machines, runs, wait_until

_CHECKPOINT = re.compile(r"epoch-(\d+)(?:-step-(\d+))?-try-(\d+)")
WORKER = "ray::RayTrainWorker"
START_S = 120.0  # of a training, generously: two cores are shared by five hosts


class Watched:
    """A run, seen from outside of the cluster."""

    def __init__(self, machines: Machines, name: str) -> None:
        self.name = name
        self.folder = machines.storage / "runs" / name
        self._log = machines.storage / f"{name}.log"

    def log(self) -> str:
        """What the command has printed."""
        return self._log.read_text() if self._log.exists() else ""

    def attempts(self) -> list[dict[str, Any]]:
        """What is known of each time that workers began: `began_at`, `workers`, and under `host` where rank 0 is."""
        files = sorted(self.folder.glob("tries/[0-9]*/try.json"), key=lambda path: int(path.parent.name))
        return [json.loads(file.read_text()) for file in files]

    def checkpoints(self) -> list[tuple[int, int, int]]:
        """Try, epoch and step of each that is committed, ascending."""
        found = (_CHECKPOINT.fullmatch(path.parent.name) for path in self.folder.glob("epoch-*/checkpoint.json"))
        return sorted((int(match[3]), int(match[1]), int(match[2] or 0)) for match in found if match)

    def wait_for_try(self, number: int, timeout_s: float = START_S) -> float:
        """Until workers began so often.

        Returns:
            When they did, as `time.time()` counts.
        """
        wait_until(lambda: len(self.attempts()) >= number, timeout_s, self.log, every_s=0.1)
        return float(self.attempts()[number - 1]["began_at"])

    def wait_for_checkpoint(self, attempt: int, more: int = 1, timeout_s: float = START_S) -> None:
        """Until a try has committed so many checkpoints of ends of epochs, or, within one, any."""

        def is_there() -> bool:
            before = max((epoch for number, epoch, _ in self.checkpoints() if number < attempt), default=0)
            return any(number == attempt and (step or epoch >= before + more) for number, epoch, step in self.checkpoints())

        wait_until(is_there, timeout_s, self.log, every_s=0.1)

    def steps_back(self) -> int:
        """How many steps were done again after the last loss."""
        return int(re.findall(r"worker failure: .*, (\d+) steps? repeated", self.log())[-1])


@contextmanager
def begun(machines: Machines, name: str, flags: str) -> Iterator[Watched]:
    """Trains on the built-in digits in the background, at most until the block ends."""
    own = "env RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=2 " if RAY_DEFAULTS else ""
    command = f"{own}python -m cifar_ray.train --dataset digits --precision fp32 --name {name} {flags}"
    with machines.head.running(f"exec {command} >>{STORAGE}/{name}.log 2>&1"):
        yield Watched(machines, name)


@contextmanager
def training(machines: Machines, name: str, flags: str) -> Iterator[Watched]:
    """As `begun`; at the end of the block it is asked to save and stop, and does."""
    with begun(machines, name, flags) as watched:
        yield watched
        machines.head.run("pkill -TERM -f '[c]ifar_ray.train'")
        wait_until(lambda: f"run {name} is saved" in watched.log(), START_S, watched.log)


def hosts_of_workers(machines: Machines) -> list[str]:
    """Names of the hosts on which a worker of Ray Train runs now."""
    return [host.name for host in machines.workers if runs(host, WORKER)]


def now() -> float:
    """As a try counts."""
    return time.time()

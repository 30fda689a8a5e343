"""What rank 0 commands all workers to do between two steps. Imports no torch, because not all who pass it on can wait for that."""

from __future__ import annotations

import threading
import time
from enum import IntEnum

from cifar_ray.config.base import seconds


class Command(IntEnum):
    """What all workers do after a step; the greater one wins."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2  # after saving


class CheckpointSchedule:
    """Rank 0's commands: to save every so often, and to save or stop on request. Requests may come from another thread at any moment.

    Args:
        every: epochs, or a time as in `30s`, `10m` or `1h`.
    """

    def __init__(self, every: str) -> None:
        self._lock = threading.Lock()
        self._stops = False
        self._requested = self._fulfilled = 0
        self._epochs = int(every) if every.isdecimal() else 0
        self._seconds = 0.0 if self._epochs else seconds(every)
        self._saved_s = time.monotonic()

    def __call__(self, epoch: int, step: int) -> Command:
        """The command after `epoch` finished epochs and `step` steps of the next."""
        with self._lock:
            if self._stops:
                return Command.STOP
            late = self._seconds and time.monotonic() - self._saved_s >= self._seconds
            due = late or (self._epochs and step == 0 and epoch % self._epochs == 0)
            return Command.SAVE if due or self._requested > self._fulfilled else Command.CONTINUE

    def request(self, command: Command, number: int) -> None:
        """Commands to stop, for good, or to save once.

        Args:
            command: `STOP` or `SAVE`.
            number: of the newest request to save; a snapshot fulfils all up to it.
        """
        with self._lock:
            self._stops = self._stops or command == Command.STOP
            self._requested = max(self._requested, number)

    def fulfil(self) -> int:
        """A snapshot is taken: restarts the clock, and returns the number of the newest request that it fulfils."""
        with self._lock:
            self._saved_s = time.monotonic()
            self._fulfilled = self._requested
            return self._fulfilled

"""Rank 0's commands to all workers between two steps. Imports no torch: the processes that only relay commands start without it."""

from __future__ import annotations

import threading
import time
from enum import IntEnum

from cifar_ray.config.base import seconds


class Command(IntEnum):
    """What all workers do after a step; of two commands, the greater one applies."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2  # after saving


class CheckpointSchedule:
    """Rank 0's commands: save at regular intervals, and save or stop on request. Other threads may call `request` at any time.

    Args:
        every: interval between checkpoints: a number of epochs, or a time such as `30s`, `10m` or `1h`.
    """

    def __init__(self, every: str) -> None:
        self._lock = threading.Lock()
        self._stops = False
        self._requested = self._fulfilled = 0
        self._epochs = int(every) if every.isdecimal() else 0
        self._seconds = 0.0 if self._epochs else seconds(every)
        self._saved_s = time.monotonic()

    def __call__(self, epoch: int, step: int) -> Command:
        """The command after `epoch` finished epochs and `step` steps of the next epoch."""
        with self._lock:
            if self._stops:
                return Command.STOP
            late = self._seconds and time.monotonic() - self._saved_s >= self._seconds
            due = late or (self._epochs and step == 0 and epoch % self._epochs == 0)
            return Command.SAVE if due or self._requested > self._fulfilled else Command.CONTINUE

    def request(self, command: Command, number: int) -> None:
        """Request a stop, which cannot be withdrawn, or one more snapshot.

        Args:
            command: `STOP` or `SAVE`.
            number: number of the newest save request; one snapshot fulfils this request and all earlier ones.
        """
        with self._lock:
            self._stops = self._stops or command == Command.STOP
            self._requested = max(self._requested, number)

    def fulfil(self) -> int:
        """Restart the interval after a snapshot, and return the number of the newest save request that the snapshot fulfils."""
        with self._lock:
            self._saved_s = time.monotonic()
            self._fulfilled = self._requested
            return self._fulfilled

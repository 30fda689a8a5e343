"""Commands from rank 0 to all workers between two steps. This module imports no torch, which would slow down the controller."""

from __future__ import annotations

import time
from enum import IntEnum

_UNITS_S = {"s": 1, "m": 60, "h": 3600}


class Command(IntEnum):
    """Action of all workers after a step; the greater command wins."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2  # after saving


class CheckpointSchedule:
    """Commands of rank 0: save at intervals, and save or stop on request.

    Args:
        every: interval as a number of epochs, or as a time such as `30s`, `10m` or `1h`.
    """

    def __init__(self, every: str) -> None:
        self._requested = Command.CONTINUE
        self._epochs = int(every) if every.isdecimal() else 0
        self._seconds = 0.0 if self._epochs else float(every[:-1]) * _UNITS_S[every[-1]]
        self._saved_s = time.monotonic()

    def __call__(self, epoch: int, step: int) -> Command:
        """The command after `epoch` finished epochs and `step` steps of the next."""
        if self._requested:
            return self._requested
        late = self._seconds and time.monotonic() - self._saved_s >= self._seconds
        due = late or (self._epochs and step == 0 and epoch % self._epochs == 0)
        return Command.SAVE if due else Command.CONTINUE

    def request(self, command: Command) -> None:
        """Set the next command; called from another thread."""
        self._requested = command

    def saved(self) -> None:
        """Restart the interval and clear a save request."""
        self._saved_s = time.monotonic()
        if self._requested == Command.SAVE:
            self._requested = Command.CONTINUE

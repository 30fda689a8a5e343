"""What rank 0 commands all workers to do between two steps. Imports no torch, because not all who pass it on can wait for that."""

from __future__ import annotations

import time
from enum import IntEnum

_UNITS_S = {"s": 1, "m": 60, "h": 3600}


class Command(IntEnum):
    """What all workers do after a step; the greater one wins."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2  # after saving


class CheckpointSchedule:
    """Rank 0's commands: to save every so often, and to save or stop on request.

    Args:
        every: epochs, or a time as in `30s`, `10m` or `1h`.
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
        """From another thread: the next command is this one."""
        self._requested = command

    def saved(self) -> None:
        """Restarts the clock, and fulfils a request to save."""
        self._saved_s = time.monotonic()
        if self._requested == Command.SAVE:
            self._requested = Command.CONTINUE

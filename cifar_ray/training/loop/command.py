"""What rank 0 wishes; a module of its own, because not all who pass it on can wait for torch."""

from __future__ import annotations

from enum import IntEnum


class Wish(IntEnum):
    """What rank 0 would have all workers do."""

    GO_ON = 0
    SAVE = 1
    STOP = 2  # and save

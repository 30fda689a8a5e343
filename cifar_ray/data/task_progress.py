"""Callback with which long loops report their progress to a verb."""

from __future__ import annotations

from collections.abc import Callable

# (name of the task, number of images) → a function that takes the number of images done since its last call
StartTask = Callable[[str, int], Callable[[int], None]]


def no_progress(name: str, total: int) -> Callable[[int], None]:
    """Report no progress."""
    return lambda count: None

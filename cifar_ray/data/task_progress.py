"""The protocol through which long loops report progress to a verb."""

from __future__ import annotations

from collections.abc import Callable

# (name of the task, number of images) → a function that takes how many more images are done
StartTask = Callable[[str, int], Callable[[int], None]]


def no_progress(name: str, total: int) -> Callable[[int], None]:
    """Reports to nobody."""
    return lambda count: None

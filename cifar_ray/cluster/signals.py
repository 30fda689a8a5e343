"""Ctrl-C and SIGTERM while a run is under way: the first asks it to save and end, a second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from cifar_ray.errors import Interrupted

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Takes over both signals for the time of a block; outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        received: the first that came; `None` if none did.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._came = False
        self._ask: Callable[[int], None] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in _WATCHED}
            self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Once more, after something else has put its own handlers in place, as Ray does."""
        for number in self._previous:
            signal.signal(number, self._on_signal)

    def ask_with(self, ask: Callable[[int], None]) -> None:
        """From now on the first signal calls `ask` with its number instead of ending the block."""
        self._ask = ask

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        again, self._came = self._came, True  # no call lies between, in which a second signal could be handled as another first one
        if again or self._ask is None:
            raise Interrupted("interrupted", number)
        self.received = signal.Signals(number)
        self._ask(number)

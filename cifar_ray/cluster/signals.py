"""Handle Ctrl-C and SIGTERM during a run: the first signal saves and stops it, a second one stops it immediately."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from cifar_ray.errors import Interrupted

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Handles Ctrl-C (SIGINT) and SIGTERM during a block; outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        received: the first signal; `None` if there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._has_signal = False
        self._request_stop: Callable[[int], None] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in _HANDLED}
            self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Install the handlers again, after another library, such as Ray, has installed its own."""
        for number in self._previous:
            signal.signal(number, self._on_signal)

    def ask_with(self, ask: Callable[[int], None]) -> None:
        """Make the first signal call `ask` with its number instead of ending the block."""
        self._request_stop = ask

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        again, self._has_signal = self._has_signal, True  # atomic, so that two signals cannot both count as the first
        if again or self._request_stop is None:
            raise Interrupted("interrupted", number)
        self.received = signal.Signals(number)
        self._request_stop(number)

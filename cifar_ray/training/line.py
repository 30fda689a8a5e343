"""The line between a run's driver and its workers: rank 0 tells what happens, the driver tells when to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

_WAIT_S = 0.2  # for messages, between two looks at whether the run is over


class _Exchange:
    """Holds messages until the driver takes them. Lives in an actor."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._stop = asyncio.Event()

    async def put(self, kind: str, content: Any) -> None:
        self._messages.put_nowait((kind, content))

    async def take(self, timeout_s: float) -> list[tuple[str, Any]]:
        """All messages that wait; at least one, unless none comes in time."""
        try:
            taken = [await asyncio.wait_for(self._messages.get(), timeout_s)]
        except TimeoutError:
            return []
        while not self._messages.empty():
            taken.append(self._messages.get_nowait())
        return taken

    async def stop(self) -> None:
        self._stop.set()

    async def stopped(self) -> None:
        await self._stop.wait()


@dataclass(frozen=True)
class Line:
    """Either end; may be sent to workers."""

    exchange: Any

    def tell(self, kind: str, content: Any) -> None:
        """Sends a message and does not wait."""
        self.exchange.put.remote(kind, content)

    def tell_surely(self, kind: str, content: Any) -> None:
        """Sends a message and waits until it has arrived, as that of a process that may end does."""
        ray.get(self.exchange.put.remote(kind, content))

    def ask_to_stop(self) -> None:
        """Tells the workers to save and stop."""
        self.exchange.stop.remote()

    def stop_event(self) -> threading.Event:
        """In a worker: set once it is asked to stop."""
        asked = self.exchange.stopped.remote()
        event = threading.Event()

        def wait() -> None:
            try:
                ray.get(asked)
            except RayError:  # the driver is gone, and with it the line
                return
            event.set()

        threading.Thread(target=wait, name="asked to stop", daemon=True).start()
        return event


@contextmanager
def listening(hear: Callable[[str, Any], None]) -> Iterator[Line]:
    """A line whose messages go to `hear`, in a thread, until the block ends and all have been heard."""
    exchange = ray.remote(_Exchange).options(num_cpus=0).remote()
    finished = threading.Event()

    def listen() -> None:
        while True:
            over = finished.is_set()
            try:
                taken = ray.get(exchange.take.remote(_WAIT_S))
            except RayError:
                return
            for kind, content in taken:
                hear(kind, content)
            if over and not taken:
                return

    thread = threading.Thread(target=listen, name="training progress", daemon=True)
    thread.start()
    try:
        yield Line(exchange)
    finally:
        finished.set()
        thread.join()
        ray.kill(exchange)

"""The line between a run's driver, its controller and its workers: rank 0 tells what happens, the others when to save and to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ray.training.loop.command import Wish

_WAIT_S = 0.2  # for messages, between two looks at whether the run is over


class _Exchange:
    """Holds messages until the driver takes them, and wishes until rank 0 does. Lives in an actor."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._asked, self._saved = asyncio.Event(), asyncio.Event()
        self._wish = Wish.SAVE

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
        """Asks for it for good: workers that start later are told, too."""
        self._wish = Wish.STOP
        self._asked.set()

    async def save(self, patience_s: float) -> None:
        """Asks the present workers, and waits until they have, or as long as that."""
        asked, self._saved = self._asked, asyncio.Event()
        if self._wish != Wish.STOP:
            self._asked = asyncio.Event()
        asked.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._saved.wait(), patience_s)

    async def asked(self) -> Wish:
        """The next wish, as soon as there is one."""
        await self._asked.wait()
        return self._wish

    async def saved(self) -> None:
        self._saved.set()


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

    def ask_to_save(self, patience_s: float) -> None:
        """Has the workers save what they have, and waits for that; goes on in silence where none can."""
        with suppress(RayError):
            ray.get(self.exchange.save.remote(patience_s))

    def saved(self) -> None:
        """In a worker: a checkpoint has been written."""
        self.exchange.saved.remote()

    def follow(self, hear: Callable[[Wish], None]) -> None:
        """In a worker: each wish goes to `hear`, in a thread, until the last, which is to stop."""

        def wait() -> None:
            with suppress(RayError):  # the driver is gone, and with it the line
                while (wish := ray.get(self.exchange.asked.remote())) != Wish.STOP:
                    hear(wish)
                hear(wish)

        threading.Thread(target=wait, name="wishes", daemon=True).start()


@contextmanager
def listening(hear: Callable[[str, Any], None]) -> Iterator[Line]:
    """A line whose messages go to `hear`, in a thread, until the block ends and all have been heard."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other hosts may go while this is needed
    exchange = ray.remote(_Exchange).options(num_cpus=0, scheduling_strategy=here).remote()
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

"""The channel between a run's driver, its controller and rank 0: events go to the driver, commands to the workers."""

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

from cifar_ray.training.loop.command import Command

_POLL_S = 0.2  # how long the driver waits for events before it looks whether the run is over


class _Exchange:
    """Holds events until the driver takes them, and requests until rank 0 confirms them. Lives in an actor.

    Requests to save are numbered. Rank 0 takes the newest and confirms its number once a checkpoint begun after it is written; that
    fulfils all earlier requests too. So of requests that come together, or between two questions of rank 0, none is lost.
    """

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._stops = False
        self._requested = self._confirmed = 0

    async def put(self, kind: str, content: Any) -> None:
        self._events.put_nowait((kind, content))

    async def take(self, timeout_s: float) -> list[tuple[str, Any]]:
        """All events that wait; at least one, unless none comes in time."""
        try:
            taken = [await asyncio.wait_for(self._events.get(), timeout_s)]
        except TimeoutError:
            return []
        while not self._events.empty():
            taken.append(self._events.get_nowait())
        return taken

    async def stop(self) -> None:
        """Commands the workers to stop, also those that start later."""
        async with self._changed:
            self._stops = True
            self._changed.notify_all()

    async def save(self, timeout_s: float) -> None:
        """Commands the present workers to save, and waits until they have."""
        async with self._changed:
            self._requested += 1
            number = self._requested
            self._changed.notify_all()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._confirmed >= number), timeout_s)

    async def next_command(self, after: int) -> tuple[Command, int]:
        """The next command, as soon as there is one, and the number of the newest request to save.

        Args:
            after: number of the newest request that rank 0 knows.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._stops or self._requested > max(after, self._confirmed))
            return Command.STOP if self._stops else Command.SAVE, self._requested

    async def confirm(self, number: int) -> None:
        """Fulfils all requests to save up to this one."""
        async with self._changed:
            self._confirmed = max(self._confirmed, number)
            self._changed.notify_all()


@dataclass(frozen=True)
class Channel:
    """Either end of the channel; may be sent to workers."""

    exchange: Any

    def send(self, kind: str, content: Any) -> None:
        """Sends an event and does not wait."""
        self.exchange.put.remote(kind, content)

    def send_and_wait(self, kind: str, content: Any) -> None:
        """Sends an event and waits until it has arrived, because this process may end soon."""
        ray.get(self.exchange.put.remote(kind, content))

    def request_stop(self) -> None:
        """Commands the workers to save and stop."""
        self.exchange.stop.remote()

    def request_save(self, timeout_s: float) -> None:
        """Commands the workers to save, and waits for the checkpoint; returns silently where no worker can save."""
        with suppress(RayError):
            ray.get(self.exchange.save.remote(timeout_s))

    def confirm_saved(self, number: int) -> None:
        """In a worker: says that a checkpoint is written that fulfils all requests to save up to this one."""
        self.exchange.confirm.remote(number)

    def on_command(self, handle: Callable[[Command, int], None]) -> None:
        """In a worker: passes each command, with the number of the newest request, to `handle`, in a thread, up to the one to stop."""

        def wait() -> None:
            command, number = Command.CONTINUE, 0
            with suppress(RayError):  # the driver is gone, and the channel with it
                while command != Command.STOP:
                    command, number = ray.get(self.exchange.next_command.remote(number))
                    handle(command, number)

        threading.Thread(target=wait, name="commands", daemon=True).start()


@contextmanager
def open_channel(on_event: Callable[[str, Any], None]) -> Iterator[Channel]:
    """A channel whose events go to `on_event`, in a thread, until the block has ended and all events are handled."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other hosts may go away meanwhile
    exchange = ray.remote(_Exchange).options(num_cpus=0, scheduling_strategy=here).remote()
    finished = threading.Event()

    def listen() -> None:
        while True:
            over = finished.is_set()
            try:
                taken = ray.get(exchange.take.remote(_POLL_S))
            except RayError:
                return
            for kind, content in taken:
                on_event(kind, content)
            if over and not taken:
                return

    thread = threading.Thread(target=listen, name="training progress", daemon=True)
    thread.start()
    try:
        yield Channel(exchange)
    finally:
        finished.set()
        thread.join()
        ray.kill(exchange)

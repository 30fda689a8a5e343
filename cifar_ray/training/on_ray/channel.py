"""The channel between a run's driver, its controller and rank 0: it carries events to the driver, and commands to the workers."""

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

_POLL_S = 0.2  # maximum wait of the driver for events before it checks whether the run has ended


class _Exchange:
    """Actor that holds events until the driver takes them, and requests until rank 0 confirms them.

    Save requests are numbered. Rank 0 takes the newest number, and confirms it after it has written a checkpoint that it began after
    the request. The confirmation fulfils all earlier requests too. So no request is lost, even if several arrive at the same time or
    while rank 0 is not waiting for one.
    """

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._changed = asyncio.Condition()
        self._stops = False
        self._requested = self._confirmed = 0

    async def put(self, kind: str, content: Any) -> None:
        self._events.put_nowait((kind, content))

    async def take(self, timeout_s: float) -> list[tuple[str, Any]]:
        """Take all queued events; wait at most `timeout_s` for the first one, then return an empty list."""
        try:
            taken = [await asyncio.wait_for(self._events.get(), timeout_s)]
        except TimeoutError:
            return []
        while not self._events.empty():
            taken.append(self._events.get_nowait())
        return taken

    async def stop(self) -> None:
        """Command the workers to stop, including those that start later."""
        async with self._changed:
            self._stops = True
            self._changed.notify_all()

    async def save(self, timeout_s: float) -> None:
        """Command the present workers to save, and wait at most `timeout_s` until they have saved."""
        async with self._changed:
            self._requested += 1
            number = self._requested
            self._changed.notify_all()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._confirmed >= number), timeout_s)

    async def next_command(self, after: int) -> tuple[Command, int]:
        """Wait for the next command; return it with the number of the newest save request.

        Args:
            after: number of the newest request that rank 0 knows.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._stops or self._requested > max(after, self._confirmed))
            return Command.STOP if self._stops else Command.SAVE, self._requested

    async def confirm(self, number: int) -> None:
        """Fulfil save request `number` and all earlier ones."""
        async with self._changed:
            self._confirmed = max(self._confirmed, number)
            self._changed.notify_all()


@dataclass(frozen=True)
class Channel:
    """Either end of the channel; it can be pickled, so that workers get it with their job."""

    exchange: Any

    def send(self, kind: str, content: Any) -> None:
        """Send an event without waiting."""
        self.exchange.put.remote(kind, content)

    def send_and_wait(self, kind: str, content: Any) -> None:
        """Send an event and wait until it has arrived, because this process may end soon."""
        ray.get(self.exchange.put.remote(kind, content))

    def request_stop(self) -> None:
        """Command the workers to save and stop."""
        self.exchange.stop.remote()

    def request_save(self, timeout_s: float) -> None:
        """Command the workers to save, and wait for the checkpoint; return silently after `timeout_s`, or if the channel has closed."""
        with suppress(RayError):
            ray.get(self.exchange.save.remote(timeout_s))

    def confirm_saved(self, number: int) -> None:
        """In a worker: report that a checkpoint is written, which fulfils save request `number` and all earlier ones."""
        self.exchange.confirm.remote(number)

    def on_command(self, handle: Callable[[Command, int], None]) -> None:
        """In a worker: start a thread that passes each command, with the number of the newest save request, to `handle` until `STOP`."""

        def wait() -> None:
            command, number = Command.CONTINUE, 0
            with suppress(RayError):  # the driver has ended, and the actor with it
                while command != Command.STOP:
                    command, number = ray.get(self.exchange.next_command.remote(number))
                    handle(command, number)

        threading.Thread(target=wait, name="commands", daemon=True).start()


@contextmanager
def open_channel(on_event: Callable[[str, Any], None]) -> Iterator[Channel]:
    """Open a channel, and pass its events to `on_event` in a thread; at the end of the block, wait until all events are handled."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other hosts may leave during the run
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

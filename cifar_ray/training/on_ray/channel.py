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

_POLL_S = 0.2  # maximum wait of the driver for events before it checks whether the run is over


class _Exchange:
    """Holds events until the driver takes them, and the command until rank 0 does. Lives in an actor."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._requested, self._saved = asyncio.Event(), asyncio.Event()
        self._command = Command.SAVE

    async def put(self, kind: str, content: Any) -> None:
        self._events.put_nowait((kind, content))

    async def take(self, timeout_s: float) -> list[tuple[str, Any]]:
        """Take all waiting events; waits for the first one until the timeout."""
        try:
            taken = [await asyncio.wait_for(self._events.get(), timeout_s)]
        except TimeoutError:
            return []
        while not self._events.empty():
            taken.append(self._events.get_nowait())
        return taken

    async def stop(self) -> None:
        """Command present and future workers to stop."""
        self._command = Command.STOP
        self._requested.set()

    async def save(self, timeout_s: float) -> None:
        """Command the present workers to save, and wait until they have."""
        requested, self._saved = self._requested, asyncio.Event()
        if self._command != Command.STOP:
            self._requested = asyncio.Event()
        requested.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._saved.wait(), timeout_s)

    async def next_command(self) -> Command:
        """Wait for the next command."""
        await self._requested.wait()
        return self._command

    async def saved(self) -> None:
        self._saved.set()


@dataclass(frozen=True)
class Channel:
    """One end of the channel; it can be sent to workers."""

    exchange: Any

    def send(self, kind: str, content: Any) -> None:
        """Send an event without waiting."""
        self.exchange.put.remote(kind, content)

    def send_and_wait(self, kind: str, content: Any) -> None:
        """Send an event and wait for its arrival, because this process may end soon."""
        ray.get(self.exchange.put.remote(kind, content))

    def request_stop(self) -> None:
        """Command the workers to save and stop."""
        self.exchange.stop.remote()

    def request_save(self, timeout_s: float) -> None:
        """Command the workers to save, and wait for the checkpoint; returns silently if no worker can save."""
        with suppress(RayError):
            ray.get(self.exchange.save.remote(timeout_s))

    def confirm_saved(self) -> None:
        """In a worker: confirm that a checkpoint was written."""
        self.exchange.saved.remote()

    def on_command(self, handle: Callable[[Command], None]) -> None:
        """In a worker: pass each command to `handle`, in a thread, up to and including the stop command."""

        def wait() -> None:
            with suppress(RayError):  # the driver has ended, and the channel with it
                while (command := ray.get(self.exchange.next_command.remote())) != Command.STOP:
                    handle(command)
                handle(command)

        threading.Thread(target=wait, name="commands", daemon=True).start()


@contextmanager
def open_channel(on_event: Callable[[str, Any], None]) -> Iterator[Channel]:
    """Open a channel; a thread passes its events to `on_event` until the block ends and all events are handled."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # the cluster may lose other hosts
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

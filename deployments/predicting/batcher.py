"""Gathers what waits while a model is busy, and sends it on as one array. Knows nothing of Ray or HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np

from deployments.predicting.contract import Classified, Pixels, ReplicaLostError, Status

# A batch whose replica died is sent again this often: one death is bad luck, three look like the batch's own doing.
_RESENDS = 2

Key = TypeVar("Key", bound=Hashable)


@dataclass(eq=False)
class _Waiting:
    images: Pixels
    answer: asyncio.Future[Classified | Status]
    resends: int = 0


@dataclass(eq=False)
class _KeyQueue:
    """What waits under one key, and how many batches of it are under way."""

    queue: deque[_Waiting] = field(default_factory=deque)
    calls: int = 0


class Batcher(Generic[Key]):
    """Batches whose size follows the load.

    A batch leaves as soon as fewer than `max_calls` of its key are under way, with all that waits by then. So a lone request never
    waits, and a batch grows while the last one runs. What nobody waits for any more when a batch leaves is left out of it.

    Args:
        send: answers for a stack of images. Where it raises `ReplicaLostError`, they are sent again.
        max_batch_size: most images in one call.
        max_calls: batches of one key under way at once.
    """

    def __init__(self, send: Callable[[Key, Pixels], Awaitable[Classified | Status]], max_batch_size: int, max_calls: int) -> None:
        self._send = send
        self._max_batch_size = max_batch_size
        self._max_calls = max_calls
        self._queues: dict[Key, _KeyQueue] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself keeps no task alive

    async def classify(self, key: Key, images: Pixels) -> Classified | Status:
        """Classifies images, together with those of other requests.

        Args:
            key: images of one key may share a batch, so they have one shape.
            images: uint8 `[N, S, S, 3]`; 1 ≤ N ≤ `max_batch_size`. They stay together.

        Raises:
            Exception: what `send` raised.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(images, loop.create_future())
        queued = self._queues.setdefault(key, _KeyQueue())
        queued.queue.append(waiting)
        # not at once: what else becomes ready in this turn of the loop goes along
        loop.call_soon(self._depart, key, queued)
        return await waiting.answer

    def _depart(self, key: Key, queued: _KeyQueue) -> None:
        while queued.calls < self._max_calls and (batch := self._gather(queued.queue)):
            queued.calls += 1
            # A batch belongs to no single request. In the context of one, Serve would cancel the call when that client hangs up.
            task = asyncio.get_running_loop().create_task(self._call(key, queued, batch), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not queued.calls and self._queues.get(key) is queued:
            del self._queues[key]

    def _gather(self, queue: deque[_Waiting]) -> list[_Waiting]:
        batch: list[_Waiting] = []
        room = self._max_batch_size
        while queue and (not batch or queue[0].answer.done() or len(queue[0].images) <= room):
            waiting = queue.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
                room -= len(waiting.images)
        return batch

    async def _call(self, key: Key, queued: _KeyQueue, batch: list[_Waiting]) -> None:
        try:
            answer = await self._send(key, np.concatenate([waiting.images for waiting in batch]) if len(batch) > 1 else batch[0].images)
        except ReplicaLostError as error:
            _fail([waiting for waiting in batch if waiting.resends == _RESENDS], error)
            for waiting in reversed(batch):
                waiting.resends += 1
                queued.queue.appendleft(waiting)
        except Exception as error:
            _fail(batch, error)
        else:
            _hand_out(batch, answer)
        finally:
            queued.calls -= 1
            self._depart(key, queued)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)


def _hand_out(batch: list[_Waiting], answer: Classified | Status) -> None:
    start = 0
    for waiting in batch:
        end = start + len(waiting.images)
        if not waiting.answer.done():
            rows = answer
            if isinstance(answer, Classified):
                rows = replace(answer, probabilities=answer.probabilities[start:end], abstains=answer.abstains[start:end])
            waiting.answer.set_result(rows)
        start = end

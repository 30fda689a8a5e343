"""Collect images that wait while a model is busy, and send them as one batch. This module does not use Ray or HTTP."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from deployments.predicting.contract import Classified, Pixels, ReplicaLostError, Status

# Retries of a batch whose replica died: one death may be chance; after three, the batch itself is the likely cause.
_RESENDS = 2

Key = TypeVar("Key", bound=Hashable)


@dataclass(eq=False)
class _Waiting:
    images: Pixels
    answer: asyncio.Future[Classified | Status]
    resends: int = 0


@dataclass(eq=False)
class _KeyQueue:
    """The waiting requests of one key, and the number of its batches in progress."""

    queue: deque[_Waiting] = field(default_factory=deque)
    calls: int = 0


class Batcher(Generic[Key]):
    """Dynamic batching: the batch size follows the load.

    A batch of all waiting requests is sent as soon as fewer than `max_calls` batches of its key are in progress. So a single request
    never waits, and the next batch grows while the last one runs. Requests that were cancelled meanwhile are left out.

    Args:
        send: classifies a batch of images. After a `ReplicaLostError`, the batch is sent again.
        max_batch_size: maximum number of images in one call.
        max_calls: maximum number of concurrent batches of one key.
    """

    def __init__(self, send: Callable[[Key, Pixels], Awaitable[Classified | Status]], max_batch_size: int, max_calls: int) -> None:
        self._send = send
        self._max_batch_size = max_batch_size
        self._max_calls = max_calls
        self._queues: dict[Key, _KeyQueue] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself holds only weak references to tasks

    async def classify(self, key: Key, images: Pixels) -> Classified | Status:
        """Classify images in a batch with those of other requests.

        Args:
            key: only images with the same key share a batch, so they have the same shape.
            images: uint8 `[N, S, S, 3]`; 1 ≤ N ≤ `max_batch_size`. They stay in one batch.

        Raises:
            Exception: what `send` raised.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(images, loop.create_future())
        queued = self._queues.setdefault(key, _KeyQueue())
        queued.queue.append(waiting)
        # Deferred, so that other requests that become ready in this iteration of the event loop join the batch.
        loop.call_soon(self._depart, key, queued)
        return await waiting.answer

    def _depart(self, key: Key, queued: _KeyQueue) -> None:
        while queued.calls < self._max_calls and (batch := self._gather(queued.queue)):
            queued.calls += 1
            # A batch belongs to several requests. In the context of one request, Serve would cancel the call when its client disconnects.
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
                probabilities, abstains = answer.probabilities[start:end], answer.abstains[start:end]
                rows = Classified(answer.model, probabilities, abstains, answer.batch_size, answer.inference_s)
            waiting.answer.set_result(rows)
        start = end

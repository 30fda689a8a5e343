"""How many pictures does an ingress put into one call, by number of model replicas? Feeds its `Batcher` at random times."""

from __future__ import annotations

import asyncio
import random

import numpy as np

from deployments.predicting.batcher import Batcher
from deployments.predicting.contract import Classified, Pixels, Status

_CALLS_PER_REPLICA, _MAX_BATCH_SIZE = 2, 64  # as in deployments/predicting/pipeline.py and the default of ServeConfig
_SECONDS = 4.0


async def pictures_a_call(models: int, pictures_per_s: float, call_s: float) -> float:
    """Mean number of pictures per call over some seconds, if each call takes `call_s` for any number of pictures."""
    sizes: list[int] = []

    async def send(key: int, images: Pixels) -> Classified | Status:
        del key
        sizes.append(len(images))
        await asyncio.sleep(call_s)
        return Status(None)

    batcher: Batcher[int] = Batcher(send, _MAX_BATCH_SIZE, _CALLS_PER_REPLICA * models)
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    arrivals, loop = random.Random(0), asyncio.get_running_loop()  # noqa: S311  chance, not secrecy
    now_s, end_s, waiting = loop.time(), loop.time() + _SECONDS, []
    while now_s < end_s:
        now_s += arrivals.expovariate(pictures_per_s)
        await asyncio.sleep(max(0.0, now_s - loop.time()))
        waiting.append(asyncio.create_task(batcher.classify(0, picture)))
    await asyncio.gather(*waiting)
    return len(waiting) / len(sizes)


def main(pictures_per_s: float = 1300) -> None:
    """Prints a table."""
    for call_s in (0.003, 0.006, 0.012):
        means = [f"{models}: {asyncio.run(pictures_a_call(models, pictures_per_s, call_s)):.1f}" for models in (1, 2, 4, 8, 56)]
        print(f"{pictures_per_s:,.0f} pictures/s, calls of {1000 * call_s:.0f} ms; pictures a call, by models: {', '.join(means)}")

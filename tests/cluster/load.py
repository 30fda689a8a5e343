"""Sends a picture thirty times a second to the proxy of the host it runs on, until a file appears: `load.py PICTURE ANSWERS STOP`.

It runs on a host of the cluster, by itself. Each request is sent once, when it is due, whatever became of those before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp

URL = "http://127.0.0.1:8000/predict"
PER_S = 30.0


async def ask(session: aiohttp.ClientSession, picture: bytes) -> dict[str, float]:
    """One request; `status` 0 is one without an answer."""
    began_s, status = time.time(), 0
    try:
        async with session.post(URL, data=picture, headers={"Content-Type": "image/png"}) as answer:
            await answer.read()
            status = answer.status
    except (aiohttp.ClientError, TimeoutError):
        pass
    return {"began_s": began_s, "took_s": time.time() - began_s, "status": status}


async def main(picture: Path, answers: Path, stop: Path) -> None:
    """Sends, and writes down what came of each request once all are answered."""
    due_s, asked = time.monotonic(), []
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        while not stop.exists():
            asked.append(asyncio.create_task(ask(session, picture.read_bytes())))
            due_s += 1 / PER_S
            await asyncio.sleep(due_s - time.monotonic())
        found = json.dumps(await asyncio.gather(*asked))
    partial = answers.with_suffix(".partial")
    partial.write_text(found)
    partial.rename(answers)


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:])))

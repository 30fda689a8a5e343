"""Sends requests over plain sockets, as no well-behaved client would, and keeps count."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tests.abuse.uploads import NO_ANSWER, Upload

_ANSWER_S = 60.0


@dataclass
class Tally:
    """What became of many requests.

    Attributes:
        statuses: how often each came.
        wrong: what was answered otherwise than expected; the first hundred.
        seconds: from sending to the whole answer, of good requests.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def count(self, upload: Upload, status: int, answer: bytes) -> None:
        """Notes an answer."""
        self.statuses[status] += 1
        is_good = status in upload.expected and b"Traceback" not in answer
        if not is_good and len(self.wrong) < 100:
            self.wrong.append(f"{upload.kind} {upload.path[:60]}: {status} {answer[:300]!r}")

    def quantile_ms(self, share: float) -> float:
        """Of the times of good requests."""
        return float(np.quantile(self.seconds, share)) * 1000


async def send(port: int, upload: Upload) -> tuple[int, bytes]:
    """Status and body of the answer; `NO_ANSWER` where the line was cut without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        with contextlib.suppress(OSError):  # the server may have answered, and hung up, before it heard all
            await _write(writer, upload)
            if upload.head is not None:
                writer.write_eof()  # what is no request may not be answered before its end
        async with asyncio.timeout(_ANSWER_S):
            while block := await reader.read(1 << 16):
                answer += block
    except ConnectionError:
        pass
    finally:
        writer.close()
    line, _, rest = answer.partition(b"\r\n")
    words = line.split()
    is_http = len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit()
    return (int(words[1]), rest) if is_http else (NO_ANSWER, answer)


async def _write(writer: asyncio.StreamWriter, upload: Upload) -> None:
    if upload.head is not None:
        writer.write(upload.head)
        await writer.drain()
        return
    lines = [f"{upload.method} {upload.path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *upload.headers]
    if upload.content_type is not None:
        lines.append(f"Content-Type: {upload.content_type}")
    lines.append("Transfer-Encoding: chunked" if upload.is_chunked else f"Content-Length: {len(upload.body)}")
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if not upload.is_chunked:
        writer.write(upload.body)
    else:
        for start in range(0, len(upload.body), 1 << 14):
            block = upload.body[start : start + (1 << 14)]
            writer.write(b"%x\r\n%s\r\n" % (len(block), block))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def bombard(port: int, uploads: Iterator[Upload], count: int, per_second: float, most_open: int = 16) -> Tally:
    """Sends at a steady pace, or as fast as answers come if that is slower."""
    tally, room = Tally(), asyncio.Semaphore(most_open)

    async def one(upload: Upload) -> None:
        try:
            tally.count(upload, *await send(port, upload))
        finally:
            room.release()

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await room.acquire()
            await asyncio.sleep(started + number / per_second - time.monotonic())
            group.create_task(one(next(uploads)))
    return tally


async def steady(port: int, upload: Upload, per_second: float, until: asyncio.Event) -> Tally:
    """Good requests at a steady pace, each timed, until the event."""
    tally = Tally()

    async def one() -> None:
        started = time.perf_counter()
        tally.count(upload, *await send(port, upload))
        tally.seconds.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        while not until.is_set():
            group.create_task(one())
            await asyncio.sleep(1 / per_second)
    return tally


async def trickle(port: int, head: bytes, until: asyncio.Event, interval_s: float = 1.0) -> int:
    """Sends a byte at a time, and begins again whenever the line is cut.

    Returns:
        How often it was.
    """
    cuts = 0
    while not until.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        closed = asyncio.create_task(reader.read())
        writer.write(head)
        while not closed.done() and not until.is_set():
            writer.write(b"a")
            await asyncio.wait([closed], timeout=interval_s)
        cuts += closed.done()
        closed.cancel()
        writer.close()
    return cuts


async def endless(port: int, path: str, content_type: str, start: bytes, most_bytes: int, key: str = "") -> tuple[int, int]:
    """Sends chunks for as long as anybody takes them.

    Returns:
        The status, and how many bytes were taken.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\nX-API-Key: {key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode() + b"%x\r\n%s\r\n" % (len(start), start))
    answer = asyncio.create_task(reader.readline())
    sent, block = 0, b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16))
    try:
        async with asyncio.timeout(_ANSWER_S):
            while not answer.done() and sent < most_bytes:
                writer.write(block)
                await writer.drain()
                await asyncio.sleep(0)  # to see the answer even where nothing holds the writer up
                sent += 1 << 16
            line = await answer
    except ConnectionError:
        line = answer.result() if answer.done() and not answer.exception() else b""
    finally:
        answer.cancel()
        writer.close()
    words = line.split()
    return (int(words[1]) if len(words) > 1 else NO_ANSWER), sent

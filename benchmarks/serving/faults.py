"""What do clients see when a model changes, a replica dies, load grows or the server stops? On one machine, over real HTTP.

    pip install -e '.[bench,openvino]'; apt-get install hey
    python benchmarks/serving/faults.py                # everything; about six minutes
    python benchmarks/serving/faults.py --only model_killed,autoscaling

Each scenario starts our server as `make serve` does, with the keys it needs, and prints one line about the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import dataclasses
import io
import itertools
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import load
from contenders import PORT, ROOT, URL, Running, bin_of, contenders, started
from random_model import save_random_model

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.store import ModelStore

BODY = load.multipart()


def request(body: bytes) -> bytes:
    """A raw HTTP request with a form as its body."""
    head = f"POST /predict?top_k=1 HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nContent-Type: {load.CONTENT_TYPE}"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


REQUEST = request(BODY)


@dataclasses.dataclass
class Seen:
    """One request as its client saw it; `status` 0 is a broken connection."""

    at_s: float
    took_ms: float
    status: int
    answer: bytes


class Clients:
    """Closed-loop clients, or with `per_s` clients at a steady rate, each with its own connection; they cycle through `requests`."""

    def __init__(self, count: int, seconds: float, per_s: float | None = None, requests: Sequence[bytes] = (REQUEST,)) -> None:
        self.count, self.seconds, self.pause_s = count, seconds, count / per_s if per_s else 0.0
        self.requests = itertools.cycle(requests)
        self.seen: list[Seen] = []

    def run(self, *events: tuple[float, Callable[[], object]]) -> list[Seen]:
        """Send requests for `seconds`, and call each event at its time (seconds from the start)."""
        asyncio.run(self._run(events))
        return self.seen

    async def _run(self, events: tuple[tuple[float, Callable[[], object]], ...]) -> None:
        self._started = time.perf_counter()
        loop = asyncio.get_running_loop()
        jobs = [self._client(index / self.count * self.pause_s) for index in range(self.count)]
        await asyncio.gather(*jobs, *(self._event(loop, at_s, event) for at_s, event in events))

    async def _event(self, loop: asyncio.AbstractEventLoop, at_s: float, event: Callable[[], object]) -> None:
        await asyncio.sleep(at_s)
        await loop.run_in_executor(None, event)

    async def _client(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        connection = None
        while (now := time.perf_counter() - self._started) < self.seconds:
            sent = time.perf_counter()
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", PORT)
                status, answer, keep = await _ask(*connection, next(self.requests))
            except (OSError, EOFError, ValueError):
                status, answer, keep = 0, b"", False
                await asyncio.sleep(0.01)
            if not keep and connection:
                connection[1].close()
                connection = None
            took = time.perf_counter() - sent
            self.seen.append(Seen(now, took * 1e3, status, answer))
            if self.pause_s:
                await asyncio.sleep(max(0.0, self.pause_s - took))
        if connection:
            connection[1].close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes, bool]:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status, length = int(head.split(b" ", 2)[1]), head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]
    if not length:  # Serve's own refusals are chunked; close the connection instead of reading them
        return status, b"", False
    return status, await reader.readexactly(int(length)), b"connection: close" not in head


def report(title: str, seen: list[Seen], note: str = "") -> None:
    """Print one line of the table."""
    good = sorted(one.took_ms for one in seen if one.status == 200)
    others = {str(status): count for status, count in Counter(one.status for one in seen).items() if status != 200}
    times = f"p50 {good[len(good) // 2]:.0f}, p99 {good[int(len(good) * 0.99)]:.0f}, max {good[-1]:.0f} ms" if good else "–"
    print(f"| {title} | {len(seen):,} | {times} | {others or 'none'} | {note} |", flush=True)


@contextmanager
def server(storage: str, set_up: str = "fast", **keys: object) -> Iterator[Running]:
    """Start our server as `make serve` or a plain `serve run` does, with further keys."""
    contender = contenders()[set_up]
    arguments = [f"{key}={value}" for key, value in keys.items()]
    command = [bin_of("serve"), "run", "deployments:app", *arguments]
    with started(dataclasses.replace(contender, command=command), storage, BODY, ROOT) as running:
        Clients(32, 3).run()
        yield running


def replicas(running: Running, deployment: str) -> list[int]:
    """Process ids of a deployment's replicas."""
    wanted = f"ServeReplica:default:{deployment}".encode()
    return [process for process in running.processes() if wanted in _cmdline(process)]


def _cmdline(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def promoted(storage: str) -> None:
    """Promote a new version, then roll back, at 50 requests per second."""
    store = ModelStore(storage)
    store.promote("cifar10", 1)
    save_random_model("airnet", storage)  # version 2
    with server(storage) as _:
        seen = Clients(10, 24, per_s=50).run((4, lambda: store.promote("cifar10", 2)), (14, lambda: store.rollback("cifar10")))
    by_two = [one.at_s for one in seen if b'"version":2' in one.answer]
    note = f"version 2 answered from {min(by_two) - 4:.1f} s after its promotion to {max(by_two) - 14:.1f} s after the rollback"
    report("promote and roll back, 50 requests/s", seen, note)


def model_killed(storage: str) -> None:
    """SIGKILL of one of two model replicas, then of the only one."""
    for count in (2, 1):
        with server(storage, num_replicas=count, torch_threads=1) as running:
            [victim, *_] = replicas(running, "classifier")
            seen = Clients(64, 16).run((4, lambda victim=victim: os.kill(victim, signal.SIGKILL)))
        report(f"model replica killed, of {count}, 64 clients", seen)


def ingress_killed(storage: str) -> None:
    """SIGKILL of one of two ingress replicas."""
    with server(storage, num_ingress_replicas=2) as running:
        before = set(replicas(running, "ingress"))
        back: list[float] = []

        def kill() -> None:
            os.kill(min(before), signal.SIGKILL)
            killed = time.monotonic()
            while not (set(replicas(running, "ingress")) - before) and time.monotonic() < killed + 30:
                time.sleep(0.1)
            back.append(time.monotonic() - killed)

        seen = Clients(64, 20).run((4, kill))
    failed = [one.at_s for one in seen if one.status != 200]
    lasted = f"{sum(at_s < 4.5 for at_s in failed)} failed at once, the last {max(failed) - 4:.1f} s later; " if failed else ""
    report("ingress replica killed, of 2, 64 clients", seen, f"{lasted}a new process after {back[0]:.1f} s")


def autoscaling(storage: str) -> None:
    """One model replica, three under load, then one again."""
    counts: list[tuple[float, int]] = []
    with server(storage, max_replicas=3, downscale_delay_s=10, cpus_per_replica=0.2, torch_threads=1) as running:
        begun = time.monotonic()

        def watch(until: Callable[[int], bool], limit_s: float) -> None:
            limit = time.monotonic() + limit_s
            while time.monotonic() < limit:
                number = len(replicas(running, "classifier"))
                if not counts or counts[-1][1] != number:
                    counts.append((time.monotonic() - begun, number))
                if until(number):
                    return
                time.sleep(0.5)

        seen = Clients(128, 70).run((0, lambda: watch(lambda number: number == 3, 69)))
        watch(lambda number: number == 1, 120)
    report("autoscaling 1 → 3 → 1, 128 clients for 70 s", seen, ", ".join(f"{number} at {at_s:.0f} s" for at_s, number in counts))


def stopped(storage: str) -> None:
    """Ctrl-C (SIGINT) and SIGTERM while requests are under way."""
    for set_up, name in itertools.product(("fast", "simple"), ("SIGINT", "SIGTERM")):
        with server(storage, set_up) as running:
            [driver] = [process for process in running.processes() if b"serve\0run\0" in _cmdline(process)]
            begun = time.monotonic()
            seen = Clients(64, 12).run((3, lambda driver=driver, name=name: os.kill(driver, getattr(signal, name))))
            while any(process == driver for process in running.processes()) and time.monotonic() < begun + 60:
                time.sleep(0.1)
            took = time.monotonic() - begun - 3
        under_way = [one for one in seen if one.at_s < 3 < one.at_s + one.took_ms / 1e3]
        cut = [one for one in seen if one.status != 200 and one.at_s < 3]
        note = f"under way then: {len(under_way)}, of them cut off: {len(cut)}; gone after {took:.0f} s"
        title = {"fast": "make serve", "simple": "serve run"}[set_up]
        report(f"{name}, {title}, 64 clients", [one for one in seen if one.at_s < 3], note)


def overload(storage: str) -> None:
    """Measure the capacity with as many clients as the server admits, then offer four times the capacity at a fixed rate."""
    with server(storage) as running:
        full = ServeConfig().ongoing_request_limit + ServeConfig().queued_request_limit
        for clients in (full // 2, full):
            capacity = _hey(clients, None, 8)
            print(f"| capacity, {clients} clients | {_describe(capacity)} | | | memory {_memory_mb(running)} |", flush=True)
        offered = 4 * capacity["200"][0]
        for _ in range(3):
            print(
                f"| 4 × that, {4 * full} clients | {_describe(_hey(4 * full, offered / 4 / full, 8))} | | | memory {_memory_mb(running)} |",
                flush=True,
            )


def _hey(clients: int, per_client_s: float | None, seconds: float) -> dict[str, tuple[float, float, float, float]]:
    """For each status: answers per second, and p50, p99 and maximum of the time, ms."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(BODY)
        body.flush()
        rate = ["-q", f"{per_client_s:.2f}"] if per_client_s else []
        command = ["hey", "-z", f"{seconds:g}s", "-c", str(clients), "-m", "POST", "-T", load.CONTENT_TYPE, "-D", body.name]
        output = subprocess.run([*command, "-t", "30", "-o", "csv", *rate, URL], capture_output=True, text=True, check=True).stdout
    times = defaultdict(list)
    for row in csv.DictReader(io.StringIO(output)):
        times[row["status-code"]].append(float(row["response-time"]) * 1e3)
    return {
        status: (len(values) / seconds, statistics.median(values), sorted(values)[int(len(values) * 0.99)], max(values))
        for status, values in sorted(times.items())
    }


def _describe(answers: dict[str, tuple[float, float, float, float]]) -> str:
    return "; ".join(
        f"{status}: {rate:.0f}/s, p50 {p50:.0f}, p99 {p99:.0f}, max {top:.0f} ms" for status, (rate, p50, p99, top) in answers.items()
    )


def _memory_mb(running: Running) -> str:
    def own_mb(process: int) -> int:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024

    return ", ".join(f"{name} {sum(map(own_mb, replicas(running, name)))} MB" for name in ("ingress", "classifier"))


SCENARIOS = {function.__name__: function for function in (promoted, model_killed, ingress_killed, autoscaling, stopped, overload)}


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCENARIOS), help=f"of {', '.join(SCENARIOS)}")
    options = parser.parse_args()
    print("| scenario | requests | answered | not answered with 200 | |\n|---|---|---|---|---|")
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as storage:
            save_random_model("airnet", storage)
            SCENARIOS[name](storage)


if __name__ == "__main__":
    main()

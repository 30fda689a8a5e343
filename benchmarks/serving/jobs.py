"""How much does a job slow down requests, and how fast does the job run meanwhile? On one machine, over real HTTP.

    python benchmarks/serving/jobs.py [--pictures 200000] [--rounds 8] [--per-s 20]

One job runs all the time. In each round, requests are first sent while its worker is stopped (SIGSTOP), then while it runs; then the job
runs alone. So other programs on the machine affect all three alike. The last column is the load average of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import load
import ray
from random_model import save_random_model
from ray import serve

from cifar_ray.client import Client
from cifar_ray.config.api_keys import add_key
from deployments import app

_MAX_LINKS = 50_000  # file systems allow some 65,000 to a file


async def requests(url: str, key: str, per_s: float, is_over: Callable[[float], bool]) -> list[float]:
    """Times in ms of requests that are sent at a steady rate, independent of the answers, until `is_over`.

    Raises:
        SystemExit: if a request fails.
    """
    times: list[float] = []
    headers = {"X-API-Key": key, "Content-Type": load.CONTENT_TYPE}

    async def one(client: httpx.AsyncClient) -> None:
        began = time.perf_counter()
        answer = await client.post(f"{url}/predict", content=load.multipart(), headers=headers)
        times.append((time.perf_counter() - began) * 1000)
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code}: {answer.text}")

    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=30) as client, asyncio.TaskGroup() as group:
        number = 0
        while not is_over(time.perf_counter() - began):
            group.create_task(one(client))
            number += 1
            await asyncio.sleep(max(0.0, began + number / per_s - time.perf_counter()))
    return times


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return sorted(times)[int(len(times) * 0.99)]


def times_of(times: list[float]) -> str:
    """Median and 99th percentile, and the number of requests."""
    return f"{statistics.median(times):.1f}, {p99(times):.1f} ({len(times)})"


class Worker:
    """The process that computes the job, a grandchild of this one."""

    def __init__(self) -> None:
        self.pid = 0
        while not self.pid:
            time.sleep(0.5)
            found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if b"ray::MapWorker" in _read(path)]
            self.pid = next((pid for pid in found if _parent(_parent(pid)) == os.getpid()), 0)

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        fields = _read(Path(f"/proc/{self.pid}/stat")).rpartition(b")")[2].split()
        if not fields:
            raise SystemExit("the job has ended; pass more --pictures")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--per-s", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=12, help="of each third of a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        save_random_model("airnet", storage)
        folder = Path(storage, "inputs/pictures")
        folder.mkdir(parents=True)
        for number in range(options.pictures):
            original = Path(storage, f"{number // _MAX_LINKS}.jpg")
            if number % _MAX_LINKS == 0:
                original.write_bytes(load.jpeg())
            os.link(original, folder / f"{number:06}.jpg")
        key = add_key(Path(storage, "keys.txt"), "benchmark", None, "admin")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app({"storage": storage, "api_keys": str(Path(storage, "keys.txt")), "jobs": "true"}))
        url = f"http://127.0.0.1:{port}"

        def send() -> list[float]:
            return asyncio.run(requests(url, key, options.per_s, lambda passed_s: passed_s > options.seconds))

        send()  # warm
        measure(Client(url, key), send, options.rounds, options.seconds)
        serve.shutdown()
        ray.shutdown()


def measure(client: Client, send: Callable[[], list[float]], rounds: int, seconds: float) -> None:
    """Start the job, and print a line for each round.

    Raises:
        SystemExit: if the job ends before the last round.
    """
    job = client.start_job("pictures", "pictures.parquet")["id"]
    while not client.job(job)["done"]:
        time.sleep(1)
    worker, ratios, shares = Worker(), [], []
    first, began = client.job(job)["done"], time.perf_counter()
    titles = (
        "round",
        "requests alone: p50, p99 ms",
        "beside the job",
        "p99 beside ÷ alone",
        "cores of the job beside requests",
        "alone",
        "load",
    )
    print(f"| {' | '.join(titles)} |\n" + "|---" * len(titles) + "|", flush=True)
    for number in range(rounds):
        os.kill(worker.pid, signal.SIGSTOP)
        alone = send()
        os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.5)
        cpu_s = worker.cpu_s()
        beside = send()
        cores = (worker.cpu_s() - cpu_s) / seconds
        cpu_s = worker.cpu_s()
        time.sleep(seconds)
        cores_alone = (worker.cpu_s() - cpu_s) / seconds
        if client.job(job)["state"] != "running":
            raise SystemExit("the job has ended; pass more --pictures")
        ratios.append(p99(beside) / p99(alone))
        shares.append(cores / max(0.01, cores_alone))
        figures = f"{ratios[-1]:.2f} | {cores:.2f} | {cores_alone:.2f} | {os.getloadavg()[0]:.1f}"
        print(f"| {number + 1} | {times_of(alone)} | {times_of(beside)} | {figures} |", flush=True)
    rate = (client.job(job)["done"] - first) / (time.perf_counter() - began)
    print(f"p99 beside ÷ alone: median {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}), n = {len(ratios)}")
    print(f"cores beside requests ÷ alone: median {statistics.median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})")
    print(f"the job: {rate:.0f} pictures/s on average, a third of the time stopped")
    client.cancel_job(job)


if __name__ == "__main__":
    main()

"""What does a job cost the requests beside it, and how fast is it then? On one machine, through real HTTP.

    python benchmarks/serving/jobs.py [--pictures 20000] [--rounds 5] [--per-s 20]

Each round sends requests without a job, then with one, then runs the same job without requests. The last column is the load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import load
import ray
from random_model import keep_random
from ray import serve

from cifar_ray.client import Client
from cifar_ray.config.api_keys import add_key
from deployments import app

_MAX_S = 150.0


async def requests(url: str, key: str, per_s: float, is_over: Callable[[float], bool]) -> list[float]:
    """Times in ms of requests at a steady rate, whatever the answers take, until `is_over`.

    Raises:
        SystemExit: if one fails.
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


class Watched:
    """A job, looked at by the requests' loop twice a second; it ends by itself, or is cancelled after 150 s."""

    def __init__(self, client: Client, number: int, name: str) -> None:
        self._client = client
        self._id = client.start_job("pictures", f"{name}-{number}.parquet")["id"]
        self._looked_s = 0.0
        self.samples: list[tuple[float, int]] = []
        while not self.look():
            time.sleep(0.5)

    def look(self) -> int:
        """Pictures so far."""
        job = self._client.job(self._id)
        if job["state"] == "failed":
            raise SystemExit(job["problem"])
        if not self.samples or job["done"] != self.samples[-1][1]:
            self.samples.append((time.perf_counter(), job["done"]))
        self.is_done = job["state"] == "done"
        return int(job["done"])

    def is_over(self, passed_s: float) -> bool:
        """Whether it has ended."""
        if passed_s - self._looked_s >= 3:
            self._looked_s = passed_s
            self.look()
        return self.is_done or passed_s > _MAX_S

    def rate(self) -> float:
        """Pictures a second after the first part; cancels what is left."""
        if not self.is_done:
            self._client.cancel_job(self._id)
            time.sleep(10)
        samples = [sample for sample in self.samples if sample[1]]
        (first_s, first), (last_s, last) = samples[0], samples[-1]
        return (last - first) / (last_s - first_s) if last > first else 0.0


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-s", type=float, default=20)
    parser.add_argument("--seconds", type=float, default=30, help="of requests without a job, in each round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        keep_random("airnet", storage)
        folder = Path(storage, "inputs/pictures")
        folder.mkdir(parents=True)
        (Path(storage) / "one.jpg").write_bytes(load.jpeg())
        for number in range(options.pictures):
            os.link(Path(storage) / "one.jpg", folder / f"{number:06}.jpg")
        key = add_key(Path(storage, "keys.txt"), "benchmark", None, "admin")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app({"storage": storage, "api_keys": str(Path(storage, "keys.txt")), "jobs": "true"}))
        url = f"http://127.0.0.1:{port}"
        client = Client(url, key)
        asyncio.run(requests(url, key, options.per_s, lambda passed_s: passed_s > 10))  # warm
        ratios, shares = [], []
        print(
            "| round | requests alone: p50, p99 ms | with a job | p99 with ÷ without | pictures/s with requests | alone | load |\n"
            + "|---" * 7
            + "|"
        )
        for number in range(options.rounds):
            alone = asyncio.run(requests(url, key, options.per_s, lambda passed_s: passed_s > options.seconds))
            job = Watched(client, number, "beside")
            beside = asyncio.run(requests(url, key, options.per_s, job.is_over))
            rate = job.rate()
            idle = Watched(client, number, "idle")
            began = time.perf_counter()
            while not idle.is_over(time.perf_counter() - began):
                time.sleep(0.5)
            idle_rate = idle.rate()
            ratios.append(p99(beside) / p99(alone))
            shares.append(rate / idle_rate if idle_rate else 0.0)
            print(
                f"| {number + 1} | {times_of(alone)} | {times_of(beside)} | {ratios[-1]:.2f} "
                f"| {rate:.0f} | {idle_rate:.0f} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )
        print(
            f"p99 with ÷ without: median {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}); "
            f"rate beside requests ÷ alone: median {statistics.median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f}); n = {len(ratios)}"
        )
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()

"""What do traces cost when they are off, and when they are on? In one process, and with a server.

    python benchmarks/serving/traces.py [--rounds 3] [--seconds 15]

In one process: the time of `record_stages`, which runs once per request. With a server: `serve run` without traces, with one request in a
hundred traced (Ray's default), and with every request traced, in turn. The collector runs on this machine and accepts everything; wrk
sends the requests.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import load
from contenders import Running
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from random_model import save_random_model

from deployments.replicas.tracing import record_stages

TIMINGS = {"decode": 1.0, "queue": 2.0, "inference": 4.0, "total": 7.5}
BODY = load.multipart()
WARM_UP_S = 15  # Ray's processes still import modules for some seconds after the server is ready


class Collector(BaseHTTPRequestHandler):
    """A collector that accepts and discards all spans."""

    def do_POST(self) -> None:
        """Answer 200."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def one_process() -> None:
    """Print the microseconds of a call with traces off and on."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    tracer = provider.get_tracer("benchmark")

    def off() -> None:
        record_stages(TIMINGS)

    def on() -> None:
        with tracer.start_as_current_span("request"):
            record_stages(TIMINGS, tracer)

    for name, call in (("off", off), ("on, with the request's own span", on)):
        rounds = []
        for _ in range(7):
            began = time.process_time()
            for _ in range(2000):
                call()
            rounds.append((time.process_time() - began) / 2000 * 1e6)
        print(
            f"in one process, traces {name}: median {statistics.median(rounds):.2f} µs ({min(rounds):.2f}–{max(rounds):.2f}), n = 7",
            flush=True,
        )
    provider.shutdown()


def with_server(rounds: int, seconds: float) -> None:
    """Print requests per second and CPU time per request for each share of traced requests, in turn."""
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    on = {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "deployments.replicas.tracing:otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
    }
    print("| round | traces | requests/s | processor time of a request, ms | errors | load |\n|---|---|---|---|---|---|")
    modes = {
        "off": {},
        "1 %": {**on, "RAY_SERVE_TRACING_SAMPLING_RATIO": "0.01"},
        "100 %": {**on, "RAY_SERVE_TRACING_SAMPLING_RATIO": "1.0"},
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in modes}
    with tempfile.TemporaryDirectory() as storage:
        save_random_model("airnet", storage)
        for number in range(rounds):
            for name in list(modes)[:: 1 if number % 2 == 0 else -1]:
                with server(storage, modes[name]) as (url, running):
                    load.run(url, [BODY], 8, WARM_UP_S)
                    before = running.cpu_s()
                    run = load.run(url, [BODY], 8, seconds)
                    cost_ms = (running.cpu_s() - before) / max(1, run["requests"]) * 1e3
                found[name].append((run["requests_per_s"], cost_ms))
                figures = f"{run['requests_per_s']:.0f} | {cost_ms:.2f} | {run['errors']:.0f} | {os.getloadavg()[0]:.1f}"
                print(f"| {number + 1} | {name} | {figures} |", flush=True)
    collector.shutdown()
    for name in ("1 %", "100 %"):
        for column, what in enumerate(("rate", "processor time")):
            ratios = [traced[column] / off[column] for traced, off in zip(found[name], found["off"], strict=True)]
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}), n = {rounds}"
            print(f"{what}, {name} traced ÷ off: median {spread}")


@contextmanager
def server(storage: str, environment: Mapping[str, str]) -> Iterator[tuple[str, Running]]:
    """Run a server in a separate process on a free port; yields its address and its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mark = uuid.uuid4().hex
    command = [sys.executable, __file__, "--serve", str(port), storage]
    own = os.environ | environment | {"CIFAR_RAY_BENCHMARK": mark}
    with subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "ready":
            if process.poll() is not None:
                raise SystemExit("the server did not start")
        yield f"http://127.0.0.1:{port}/predict", Running(mark)
        process.communicate("stop\n")


def serve_here(port: int, storage: str) -> None:
    """Serve until a line arrives on stdin."""
    import ray
    from ray import serve

    from deployments import app

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"storage": storage}))
    print("ready", flush=True)
    sys.stdin.readline()
    serve.shutdown()
    ray.shutdown()


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "STORAGE"), help="used by the script itself")
    options = parser.parse_args()
    if options.serve:
        serve_here(int(options.serve[0]), options.serve[1])
        return
    one_process()
    if options.rounds:
        with_server(options.rounds, options.seconds)


if __name__ == "__main__":
    main()

"""The compared servers: how to start each of them, and the CPU time of its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from load import CONTENT_TYPE

PORT = 8000
URL = f"http://127.0.0.1:{PORT}/predict"
ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(__file__).resolve().parent / "peers"
_MARK = "CIFAR_RAY_BENCHMARK"
_START_S = 240  # time to start; on two busy cores, compiling and comparing a network of 224 px takes a minute
_CORES = len(os.sched_getaffinity(0))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def bin_of(name: str) -> str:
    """Path of a program in this Python's environment."""
    return str(Path(sys.executable).parent / name)


@dataclass(frozen=True)
class Contender:
    """A server on port 8000 that answers `POST /predict` with a multipart picture.

    Attributes:
        name: name in the table.
        command: command that starts the server in the foreground.
        environment: additional environment variables.
        is_ours: whether it runs from the checkout under test; a peer runs from its own folder.
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    is_ours: bool = False


def contenders() -> dict[str, Contender]:
    """Everything that can be measured, by its short name. Peers are set up as their own documentation advises."""
    serve, share = bin_of("serve"), {"PEER_TORCH_THREADS": "1"}
    bind = f"127.0.0.1:{PORT}"
    return {
        "fast": Contender("cifar_ray, make serve", [bin_of("cifar-ray"), "serve"], {}, True),
        "simple": Contender("cifar_ray, serve run", [serve, "run", "deployments:app"], {}, True),
        "torch": Contender("cifar_ray, serve run engine=torch", [serve, "run", "deployments:app", "engine=torch"], {}, True),
        "litserve": Contender("LitServe, batching", [sys.executable, "litserve_app.py"]),
        "litserve_fp32": Contender("LitServe, batching, fp32", [sys.executable, "litserve_app.py"], {"PEER_PRECISION": "fp32"}),
        "litserve_engine": Contender("LitServe, batching, our engine", [sys.executable, "litserve_app.py"], {"PEER_ENGINE": "auto"}),
        "fastapi": Contender(
            "FastAPI + uvicorn",
            [bin_of("uvicorn"), "fastapi_app:app", "--port", str(PORT), "--workers", str(_CORES), "--no-access-log"],
            share,
        ),
        "flask": Contender("Flask + gunicorn, 2 workers", [bin_of("gunicorn"), "-w", "2", "-b", bind, "flask_app:app"], share),
        "ray": Contender("Ray Serve, @serve.batch defaults", [serve, "run", "ray_serve_app:app"]),
    }


@dataclass(frozen=True)
class Running:
    """A started server; each of its processes has `mark` in its environment, even if it is no child of the server."""

    mark: str

    def processes(self) -> list[int]:
        """Ids of all its processes, including daemons."""
        wanted = f"{_MARK}={self.mark}".encode()
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if wanted in _read(folder / "environ").split(b"\0")]

    def cpu_s(self) -> float:
        """CPU seconds of all its present processes since they started."""
        ticks = 0
        for process in self.processes():
            stat = _read(Path("/proc") / str(process) / "stat").rpartition(b")")[2].split()
            ticks += int(stat[11]) + int(stat[12]) if stat else 0
        return ticks / _TICKS_PER_S


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile, or is another user's
        return b""


@contextmanager
def started(contender: Contender, storage: str, body: bytes, checkout: Path) -> Iterator[Running]:
    """Run a server until the end of the block, then end all its processes.

    Raises:
        SystemExit: if the port is taken, or the server does not answer in time.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            raise SystemExit(f"port {PORT} is taken; stop what listens there") from None
    folder = checkout if contender.is_ours else PEERS
    running = Running(uuid.uuid4().hex)
    with tempfile.TemporaryFile() as log:
        environment = os.environ | {
            "CIFAR_RAY_STORAGE": storage,
            "PYTHONPATH": os.pathsep.join([str(folder), str(checkout)]),
            _MARK: running.mark,
            **contender.environment,
        }
        process = subprocess.Popen(contender.command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(process, body)
            yield running
        except TimeoutError:
            log.seek(0)
            tail = log.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{tail}\n{contender.name} did not answer within {_START_S} s") from None
        finally:
            _stop(process, running)


def _wait(process: subprocess.Popen[bytes], body: bytes) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            request = urllib.request.Request(URL, body, {"Content-Type": CONTENT_TYPE})
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError


def _stop(process: subprocess.Popen[bytes], running: Running) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        for left in running.processes():
            try:
                os.kill(left, signal_number)
            except ProcessLookupError:
                continue
        while running.processes() and time.monotonic() < deadline:
            time.sleep(0.1)

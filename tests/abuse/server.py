"""The whole server in processes of its own, as `make serve` starts it, and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import yaml

from cifar_ray.cluster.serve_command import serve_environment
from cifar_ray.config.api_keys import UNLIMITED, ApiKey, new_key, sha256_of, write_keys
from cifar_ray.models import create_model
from cifar_ray.store import Architecture, Manifest, ModelStore

ROOT = Path(__file__).resolve().parents[2]
_MARK = "CIFAR_RAY_ABUSE"
_START_S = 120
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# what Ray calls the process of a replica: ServeReplica:<application>:<deployment>
_REPLICA = re.compile(rb"ray::ServeReplica:\w+:(ingress|classifier)")


@dataclass(frozen=True)
class RealServer:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
        folder: of its logs.
        mark: in the environment of each of its processes.
        key: that it asks for.
    """

    port: int
    folder: Path
    mark: str
    key: str

    def replicas(self) -> dict[int, str]:
        """Deployment by process id."""
        found = {}
        for process in self.processes():
            if match := _REPLICA.match(_read(Path(f"/proc/{process}/cmdline"))):
                found[process] = match[1].decode()
        return found

    def resident_bytes(self) -> dict[str, int]:
        """By deployment."""
        return {name: int(_read(Path(f"/proc/{process}/statm")).split()[1]) * _PAGE_BYTES for process, name in self.replicas().items()}

    def processes(self) -> list[int]:
        """All process ids, of daemons too."""
        wanted = f"{_MARK}={self.mark}".encode()
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if wanted in _read(folder / "environ").split(b"\0")]

    def logged(self, text: str) -> list[str]:
        """Where a text stands in the logs, with what is around it. Ray's dashboard has tracebacks of its own as it starts."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.suffix in (".log", ".err", ".out") and not path.name.startswith("dashboard"):
                log = path.read_text(errors="replace")
                places = re.finditer(re.escape(text), log)
                found += [f"{path.name}: {log[max(0, place.start() - 200) : place.end() + 1500]}" for place in places]
        return found


@contextmanager
def real_server(own: Path, storage: str | None = None) -> Iterator[RealServer]:
    """Starts it with a model of random weights, in its own folder unless a storage is given, and ends every process of it."""
    storage = storage or str(own)
    save_random_model(storage)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    key, keys = new_key(), own / "api_keys.txt"
    write_keys(keys, [ApiKey("tests", sha256_of(key.encode()), UNLIMITED)])
    arguments = {"storage": storage, "api_keys": str(keys)}
    application = {"name": "default", "route_prefix": "/", "import_path": "deployments:app", "args": arguments}
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    (own / "serve.yaml").write_text(yaml.safe_dump({"proxy_location": "EveryNode"} | config))
    settings = serve_environment()
    with tempfile.TemporaryDirectory(prefix="abuse-", ignore_cleanup_errors=True) as folder:  # short: Ray's sockets are in it
        server = RealServer(port, Path(folder), uuid.uuid4().hex, key)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= settings | {"RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT), _MARK: server.mark}
        command = [str(Path(sys.executable).parent / "serve"), "run", str(own / "serve.yaml")]
        with (server.folder / "terminal.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                _wait_until_ready(server, process)
                yield server
            finally:
                _stop(server, process)


def save_random_model(storage: str) -> None:
    """The default network, untrained."""
    arguments = {"num_classes": 10, "image_size": 32}
    torch.manual_seed(0)
    manifest = Manifest(
        architecture=Architecture(name="airnet", arguments=arguments),
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        image_size_px=32,
        channel_mean=(0.5, 0.5, 0.5),
        channel_std=(0.25, 0.25, 0.25),
        resize_policy="pad",
        dataset_name="random",
        dataset_fingerprint="0" * 64,
        created_at=datetime.now(UTC),
    )
    ModelStore(storage).save("cifar10", manifest, create_model("airnet", **arguments).state_dict())


def _wait_until_ready(server: RealServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline or process.poll() is not None:
                raise TimeoutError((server.folder / "terminal.log").read_text(errors="replace")[-3000:]) from None
            time.sleep(0.2)


def _stop(server: RealServer, process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        for left in server.processes():
            try:
                os.kill(left, signal_number)
            except ProcessLookupError:
                continue
        while server.processes() and time.monotonic() < deadline:
            time.sleep(0.1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile, or is another user's
        return b""

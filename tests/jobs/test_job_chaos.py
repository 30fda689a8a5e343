"""A job whose workers, runner and server are killed again and again ends with a table that is complete and has no row twice."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray import serve

from cifar_ray.client import Client
from cifar_ray.config.api_keys import add_key
from deployments import app
from tests.deployments.conftest import SaveTiny, save_tiny
from tests.deployments.test_serving import free_port, wait_until

__all__ = ["save_tiny"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PICTURES = 6000
APP = "jobs_chaos"


def own_processes(title: bytes) -> list[int]:
    """Processes of this cluster, which this process has started, by a part of their title."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if title in path.read_bytes() and parent(parent(int(path.parent.name))) == os.getpid():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def kill(title: bytes, only: Collection[int] | None = None) -> int:
    victims = [process for process in own_processes(title) if only is None or process in only]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    return len(victims)


def run(start: Callable[[], None], client: Client, output: str) -> dict[str, object]:
    """Kill in turn a worker, the runner, and every replica of the server with Serve itself."""
    job = client.start_job("camera", output)
    kills = 0
    for what in (b"ray::MapWorker", b":jobs", b"ray::MapWorker", b"ray::ServeReplica"):
        before = client.job(job["id"])["done"]
        wait_until(lambda before=before: client.job(job["id"])["done"] > before, timeout_s=200)
        kills += kill(what)
        if what == b"ray::ServeReplica":
            serve.shutdown()
            start()
        wait_until(lambda: is_up(client), timeout_s=120)
    assert kills >= 5
    wait_until(lambda: client.job(job["id"])["state"] not in ("queued", "running"), timeout_s=600)
    return client.job(job["id"])


def is_up(client: Client) -> bool:
    try:
        return client.ready() and bool(client.jobs())
    except Exception:
        return False


def test_a_table_is_complete_and_has_no_row_twice(ray_cluster: None, tmp_path: Path, save_tiny: SaveTiny) -> None:
    save_tiny(str(tmp_path))
    key = add_key(tmp_path / "keys.txt", "chaos", None, "jobs")
    folder = tmp_path / "inputs/camera"
    folder.mkdir(parents=True)
    png = io.BytesIO()  # takes some 15 ms to decode, so the job lasts a minute or more
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)).save(png, "PNG", compress_level=1)
    (tmp_path / "one.png").write_bytes(png.getvalue())
    for number in range(PICTURES):
        os.link(tmp_path / "one.png", folder / f"{number:05}.png")
    (folder / "00007.png").unlink()
    (folder / "00007.png").write_bytes(b"broken")
    port = free_port()

    def start() -> None:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        arguments = {"storage": str(tmp_path), "api_keys": str(tmp_path / "keys.txt"), "jobs": "true", "precision": "fp32"}
        shares = {
            "cpus_per_replica": "0.1",
            "cpus_per_ingress": "0.1",
            "cpus_per_job_worker": "0.5",
            "engine": "torch",
            "job_priority": "normal",
        }
        serve.run(app(arguments | shares), name=APP)

    start()
    try:
        began = time.monotonic()
        job = run(start, Client(f"http://127.0.0.1:{port}", key), "camera.parquet")
        print(f"the job took {time.monotonic() - began:.0f} s: {job}")
        assert (job["state"], job["pictures"], job["done"], job["broken"]) == ("done", PICTURES, PICTURES, 1)
        rows = pq.read_table(tmp_path / "predictions/camera.parquet")
        assert sorted(rows["file"].to_pylist()) == [f"camera/{number:05}.png" for number in range(PICTURES)]
        assert rows["error"].null_count == PICTURES - 1
        assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    finally:
        serve.shutdown()

"""`make test-abuse`: the real server under everything that `uploads` can think of, and under schemathesis. Minutes; not in `make test`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from cifar_ray.cluster.serve_command import serve_environment
from tests.abuse import corpus
from tests.abuse.sender import Tally, bombard, endless, send, steady, trickle
from tests.abuse.server import RealServer, real_server
from tests.abuse.uploads import ANSWERED, FORM, Upload, part, uploads
from tests.deployments.conftest import make_picture

pytestmark = [pytest.mark.ray, pytest.mark.abuse, pytest.mark.timeout(1800)]

COUNT = int(os.environ.get("CIFAR_RAY_ABUSE_UPLOADS", "20000"))
SEED = int(os.environ.get("CIFAR_RAY_ABUSE_SEED", "0"))
PER_SECOND = 120.0
GOOD_PER_SECOND = 20.0
BEFORE_S = 20.0
SLOW_SENDERS = 8
WARM_UP = 400

HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Slow: "
BODY = "POST /predict HTTP/1.1\r\nHost: a\r\nX-API-Key: {}\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("storage")) as server:
        yield server


def with_key(upload: Upload, key: str) -> Upload:
    return replace(upload, headers=(f"X-API-Key: {key}", *upload.headers))


def good(key: str) -> Upload:
    return with_key(Upload("good", make_picture(), expected=ANSWERED), key)


def abuse(port: int, key: str, count: int) -> Tally:
    """The hostile requests, sent by a process of their own: making one may take longer than a good one's answer."""
    return asyncio.run(bombard(port, (with_key(upload, key) for upload in uploads(SEED)), count, PER_SECOND))


async def quiet_then_abused(port: int, key: str, hostile: Executor) -> tuple[Tally, Tally, Tally, int]:
    """Good requests alone; then good and bad ones together; and how often slow senders were cut off."""
    await bombard(port, iter([good(key)] * 200), 200, GOOD_PER_SECOND * 2)
    ended = asyncio.Event()
    asyncio.get_running_loop().call_later(BEFORE_S, ended.set)
    before = await steady(port, good(key), GOOD_PER_SECOND, ended)
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        during = group.create_task(steady(port, good(key), GOOD_PER_SECOND, ended))
        starts = (HEAD, BODY.format(key).encode())
        slow = [group.create_task(trickle(port, start, ended)) for start in starts for _ in range(SLOW_SENDERS)]
        bad = await asyncio.get_running_loop().run_in_executor(hostile, abuse, port, key, COUNT)
        ended.set()
    return before, during.result(), bad, sum(task.result() for task in slow)


def test_mutated_uploads_harm_neither_the_server_nor_others(server: RealServer) -> None:
    assert asyncio.run(send(server.port, good(server.key)))[0] == 200
    replicas, resident = server.replicas(), server.resident_bytes()
    assert set(resident) == {"ingress", "classifier"}
    started = time.monotonic()
    with ProcessPoolExecutor(1, get_context("spawn")) as hostile:
        hostile.submit(abuse, server.port, server.key, WARM_UP).result()  # what they are made of is made before anything is timed
        before, during, bad, cuts = asyncio.run(quiet_then_abused(server.port, server.key, hostile))
    grown = {name: size - resident[name] for name, size in server.resident_bytes().items()}
    figures: dict[str, Any] = {
        "uploads": COUNT,
        "seed": SEED,
        "seconds": round(time.monotonic() - started),
        "statuses": dict(sorted(bad.statuses.items())),
        "good_before": {"n": len(before.seconds), "p50_ms": before.quantile_ms(0.5), "p99_ms": before.quantile_ms(0.99)},
        "good_during": {"n": len(during.seconds), "p50_ms": during.quantile_ms(0.5), "p99_ms": during.quantile_ms(0.99)},
        "resident_mb_before": {name: size / 1e6 for name, size in resident.items()},
        "resident_mb_grown": {name: size / 1e6 for name, size in grown.items()},
        "slow_senders_cut": cuts,
    }
    print("\n" + json.dumps(figures, indent=2))
    assert bad.wrong == before.wrong == during.wrong == []
    assert sum(bad.statuses.values()) == COUNT
    assert server.replicas() == replicas
    assert server.logged("Traceback") == []
    assert server.logged(server.key) == []
    assert max(grown.values()) < 100_000_000
    assert during.quantile_ms(0.99) <= 2 * before.quantile_ms(0.99)


def test_pictures_just_under_the_limit_leave_no_memory_behind(server: RealServer) -> None:
    resident = server.resident_bytes()
    heavy = [with_key(Upload(f"heavy: {name}", data, expected=ANSWERED), server.key) for name, data in corpus.heavy().items()] * 2

    async def beside_good_ones() -> tuple[Tally, Tally]:
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            during = group.create_task(steady(server.port, good(server.key), GOOD_PER_SECOND, ended))
            tally = await bombard(server.port, iter(heavy), len(heavy), PER_SECOND, most_open=2)
            ended.set()
        return tally, during.result()

    tally, during = asyncio.run(beside_good_ones())
    grown = {name: (size - resident[name]) / 1e6 for name, size in server.resident_bytes().items()}
    print("\n" + json.dumps({"grown_mb": grown, "good": {"n": len(during.seconds), "p99_ms": during.quantile_ms(0.99)}}))
    assert tally.wrong == during.wrong == []
    assert max(grown.values()) < 100


@pytest.mark.parametrize(
    ("path", "content_type", "start"),
    [("/predict", "image/png", b"x"), ("/predict", FORM, part("image", b"")), ("/predict_batch", FORM, part("images", b""))],
)
def test_an_endless_body_is_refused(server: RealServer, path: str, content_type: str, start: bytes) -> None:
    status, sent = asyncio.run(endless(server.port, path, content_type, start, most_bytes=400_000_000, key=server.key))
    assert status == 413
    assert sent < 200_000_000


def test_a_client_that_falls_silent_in_its_headers_is_cut_off(server: RealServer) -> None:
    limit_s = float(serve_environment()["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"])

    async def silent() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(HEAD)
        started = time.monotonic()
        async with asyncio.timeout(limit_s + 20):
            await reader.read()
        writer.close()
        return time.monotonic() - started

    assert asyncio.run(silent()) == pytest.approx(limit_s, abs=5)


def test_schemathesis_finds_nothing_wrong_with_the_documented_api(server: RealServer, tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
    address = f"http://127.0.0.1:{server.port}/openapi.json"
    flags = ["--checks", checks, "--seed", str(SEED), "--max-examples", "200", "-H", f"X-API-Key: {server.key}"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", address, *flags]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2000:]
    assert server.logged("Traceback") == []

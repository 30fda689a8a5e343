"""Jobs over HTTP: only where the operator wants them, only with a key that may, and never outside the storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from cifar_ray.client import Client
from cifar_ray.config.api_keys import Scope, add_key
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import ServerError
from cifar_ray.jobs.job_queue import JobQueue
from deployments.protocols.protocol_server import ProtocolServer
from tests.deployments.conftest import Served
from tests.deployments.test_ingress import FakeClassifier, Notes, problem
from tests.deployments.test_protocols import sender

BODY = {"source": "spring", "output": "spring.csv"}


class Server:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.storage, self.keys, self._file = folder / "storage", {}, folder / "keys.txt"
        (self.storage / "inputs/spring").mkdir(parents=True)
        for scope in ("predict", "review", "jobs", "admin"):
            self.keys[scope] = add_key(self._file, scope, None, scope)
        values = {"storage": str(self.storage), "api_keys": self._file, "jobs": True} | settings
        self.app = ProtocolServer(FakeClassifier(), ServeConfig(**values), Notes())
        self._send = sender(self.app)
        self.queue = JobQueue(str(self.storage))

    def ask(self, method: str, path: str, scope: Scope | None = "jobs", **request: Any) -> httpx.Response:
        return self._send(method, path, headers={"X-API-Key": self.keys[scope]} if scope else {}, **request)

    def start(self, **changes: Any) -> httpx.Response:
        return self.ask("POST", "/jobs", json=BODY | changes)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_a_job_from_start_to_cancellation(server: Server) -> None:
    started = server.start(model="birds", top_k=3).json()
    assert (started["state"], started["model"], started["by"], started["done"]) == ("queued", "birds@1", "jobs", 0)
    assert server.ask("GET", f"/jobs/{started['id']}").json() == started
    second = server.start(output="b.parquet").json()
    assert [job["id"] for job in server.ask("GET", "/jobs").json()["jobs"]] == [second["id"], started["id"]]
    assert server.ask("DELETE", f"/jobs/{started['id']}", "admin").json()["state"] == "cancelled"
    [taken] = [server.queue.take("one")]
    assert (taken.id, taken.model) == (second["id"], "pets@3")


def test_the_model_is_fixed_when_the_job_is_accepted(server: Server) -> None:
    for reference, pinned in {None: "pets@3", "pets": "pets@3", "pets@1": "pets@1", "pets@latest": "pets@3"}.items():
        assert (
            server.start(output=f"{len(server.queue.all())}.csv", **({"model": reference} if reference else {})).json()["model"] == pinned
        )
    for reference in ("fish", "pets@9", "pets@staging"):
        assert "not found. Available:" in problem(server.start(model=reference), 404)


def test_jobs_are_off_by_default(tmp_path: Path) -> None:
    server = Server(tmp_path, jobs=False)
    for method, path in (("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/1"), ("DELETE", "/jobs/1")):
        assert "jobs=true" in problem(server.ask(method, path, "admin"), 403)
    assert not (server.storage / "jobs").exists()
    assert ServeConfig().jobs is False


@pytest.mark.parametrize("scope", ["predict", "review"])
def test_other_keys_may_not(server: Server, scope: Scope) -> None:
    job = server.start().json()
    for method, path in (("POST", "/jobs"), ("GET", "/jobs"), ("GET", f"/jobs/{job['id']}"), ("DELETE", f"/jobs/{job['id']}")):
        assert "this needs jobs" in problem(server.ask(method, path, scope), 403)
    assert problem(server.ask("POST", "/jobs", None), 401)
    assert server.queue.get(job["id"]).state == "queued"


def test_a_key_for_jobs_sees_no_captured_picture(server: Server) -> None:
    assert "this needs review" in problem(server.ask("GET", "/captures", "jobs"), 403)
    assert "this needs admin" in problem(server.ask("DELETE", "/captures/r1", "jobs"), 403)


def test_a_server_without_keys_runs_no_jobs(tmp_path: Path) -> None:
    server = Server(tmp_path, api_keys=None)
    assert "API key" in problem(server.start(), 403)


@pytest.mark.parametrize("source", ["/etc", "../models", "%2e%2e/x", "file:///etc/passwd", "http://localhost:8000/a.jpg", "autumn", "link"])
def test_a_source_outside_is_400(server: Server, source: str) -> None:
    (server.storage / "inputs/link").symlink_to("/etc")
    assert problem(server.start(source=source), 400).startswith("source: ")
    assert server.queue.all() == []


@pytest.mark.parametrize(
    "output", ["../a.csv", "/a.csv", "a/b.csv", "a.json", "a", ".csv", "a.csv\n", "a\0.csv", "..csv", "a\\b.csv", "A" * 101 + ".csv"]
)
def test_an_output_is_a_name_of_a_table(server: Server, output: str) -> None:
    problem(server.start(output=output), 400)
    assert server.queue.all() == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"source": 1}', b'{"source": "spring"}', b'{"source": "\\ud800", "output": "a.csv"}', b"\xff"]
)
def test_a_body_that_is_not_as_expected_is_400(server: Server, body: bytes) -> None:
    problem(server.ask("POST", "/jobs", content=body), 400)


def test_a_model_cannot_be_a_path(server: Server) -> None:
    for model in ("../models/pets/1", "/etc", "pets/1", "models:/pets/1"):
        problem(server.start(model=model), 400)


def test_a_table_that_exists_is_409_and_an_unknown_job_404(server: Server) -> None:
    server.start()
    assert "choose another output" in problem(server.start(), 409)
    for path in ("/jobs/none", "/jobs/..%2f..", "/jobs/20261129000000-00000000"):
        for method in ("GET", "DELETE"):
            problem(server.ask(method, path), 404)


def test_the_client_starts_watches_and_cancels(server: Server) -> None:
    with Served(server.app.http_app) as served:
        client = Client(served.url, server.keys["jobs"])
        job = client.start_job("spring", "spring.parquet", top_k=2)
        assert client.job(job["id"]) == job
        assert client.jobs() == [job]
        assert client.cancel_job(job["id"])["state"] == "cancelled"
        with pytest.raises(ServerError, match="not found"):
            client.job("none")

"""The whole server: Ray Serve, real HTTP, a bundle in a store."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve

from cifar_ray.inference.predictor import Predictor
from cifar_ray.inference.preprocess import preprocess
from cifar_ray.store import Bundle, ModelStore
from deployments import app
from deployments.contract import Classified

pytestmark = pytest.mark.ray

APP = "cifar_ray"
CONCURRENT = 24


@dataclass(frozen=True)
class Server:
    """A running server, and what it answered before there was a model.

    Attributes:
        url: where it listens.
        storage: where its model is.
        before: answers of `/ready` and `/predict` while the store was empty.
    """

    url: str
    storage: str
    before: dict[str, httpx.Response]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(is_true: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., Bundle], picture: bytes
) -> Iterator[Server]:
    """A server that was started with an empty store and given its first model while it ran."""
    port, storage = free_port(), str(tmp_path_factory.mktemp("storage"))
    url = f"http://127.0.0.1:{port}"
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(app({"storage": storage, "precision": "fp32", "batch_wait_timeout_s": "0.1", "max_batch_size": "16"}), name=APP)
        before = {"/ready": httpx.get(f"{url}/ready", timeout=30), "/predict": httpx.post(f"{url}/predict", content=picture, timeout=30)}
        save_tiny(storage)
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, timeout_s=30)
        yield Server(url, storage, before)
    finally:
        serve.shutdown()


def test_an_empty_store_gives_503_with_the_command_to_type_until_the_first_model_is_picked_up(server: Server) -> None:
    for response in server.before.values():
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert f"python -m cifar_ray.train --storage {server.storage}" in response.json()["detail"]
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready", "model": "pets", "version": 1}


@pytest.mark.parametrize(
    "request_of",
    [
        lambda data: {"files": {"image": ("a.jpg", data)}},
        lambda data: {"content": data, "headers": {"content-type": "image/jpeg"}},
    ],
)
def test_a_served_prediction_is_that_of_the_predictor(
    server: Server, picture: bytes, request_of: Callable[[bytes], dict[str, Any]]
) -> None:
    answer = httpx.post(f"{server.url}/predict", **request_of(picture)).json()
    predictor = Predictor(ModelStore(server.storage).load("pets"), precision="fp32")
    [expected] = predictor.predict(preprocess(picture, 16, "pad")[None]).probabilities
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=2e-6)
    assert answer["class_id"] == int(expected.argmax())


def test_a_batch_with_a_bad_picture_answers_the_others(server: Server, picture: bytes) -> None:
    files = [("images", (f"{i}.jpg", b"broken" if i == 1 else picture)) for i in range(40)]
    answer = httpx.post(f"{server.url}/predict_batch", files=files, timeout=30).json()
    assert answer["num_failed"] == 1
    assert [("error" in item) for item in answer["predictions"]] == [i == 1 for i in range(40)]


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("GET", "/predict", {}, 405),
        ("POST", "/predict", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ("POST", "/predict", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ("POST", "/predict", {"content": b"x"}, 422),
        ("POST", "/predict", {"content": bytes(10_000_001)}, 413),
    ],
)
def test_bad_requests_are_refused_over_http(server: Server, method: str, path: str, request_: dict[str, Any], status: int) -> None:
    response = httpx.request(method, server.url + path, **request_, timeout=30)
    assert (response.status_code, response.json()["status"]) == (status, status)
    assert response.headers["content-type"] == "application/problem+json"


def test_concurrent_requests_share_forward_passes(server: Server) -> None:
    classifier = serve.get_deployment_handle("classifier", APP)
    image = np.zeros((1, 16, 16, 3), np.uint8)

    async def ask() -> list[Classified]:
        return await asyncio.gather(*(classifier.classify.remote(image, "pad") for _ in range(CONCURRENT)))

    answers = asyncio.run(ask())
    assert max(answer.batch_size for answer in answers) > 1
    assert max(answer.batch_size for answer in answers) <= 16
    assert all(len(answer.probabilities) == 1 for answer in answers)


def test_a_killed_model_replica_costs_at_worst_a_503_and_comes_back(server: Server, picture: bytes) -> None:
    [replica] = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "classifier" in actor["name"]]
    pid = ray.get(ray.get_actor(**replica).__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    seen = set()

    def works() -> bool:
        response = httpx.post(f"{server.url}/predict", content=picture, timeout=60)
        seen.add(response.status_code)
        return response.status_code == 200

    wait_until(works, timeout_s=60)
    assert seen <= {200, 503}

"""The whole server: Ray Serve, real HTTP, a bundle in a store."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve

from cifar_ray import predict
from cifar_ray.client import Client
from cifar_ray.errors import ServerError
from cifar_ray.inference.explain import explain
from cifar_ray.inference.predictor import Predictor
from cifar_ray.inference.preprocess import preprocess
from cifar_ray.store import Bundle, ModelStore
from deployments import app
from deployments.predicting.contract import Classified

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
        arguments = {"storage": storage, "precision": "fp32", "max_batch_size": "16", "num_replicas": "2", "torch_threads": "1"}
        serve.run(app(arguments | {"cpus_per_replica": "0.1", "cpus_per_ingress": "0.1", "json_logs": "true"}), name=APP)
        before = {"/ready": httpx.get(f"{url}/ready", timeout=30), "/predict": httpx.post(f"{url}/predict", content=picture, timeout=30)}
        save_tiny(storage)
        # each replica finds the model by itself, within two seconds of the other; twelve answers in a row come from both
        wait_until(lambda: all(httpx.get(f"{url}/ready").status_code == 200 for _ in range(12)), timeout_s=30)
        yield Server(url, storage, before)
    finally:
        serve.shutdown()


def test_an_empty_store_gives_503_with_the_command_to_type_until_the_first_model_is_picked_up(server: Server) -> None:
    for response in server.before.values():
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/problem+json"
        assert f"cifar-ray train --storage {server.storage}" in response.json()["detail"]
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
    assert answer["abstain"] is False
    seen = httpx.post(f"{server.url}/explain?format=json", **request_of(picture)).json()
    assert seen["class_id"] == answer["class_id"]
    _, heatmap = explain(predictor, preprocess(picture, 16, "pad"), seen["class_id"])
    np.testing.assert_allclose(seen["heatmap"], heatmap, atol=1e-3)


def test_the_page_and_the_gallery_are_served(server: Server) -> None:
    assert "text/html" in httpx.get(server.url).headers["content-type"]
    assert httpx.get(f"{server.url}/gallery").json() == {"model": "pets", "version": 1, "gallery": None}
    assert httpx.get(f"{server.url}/gallery?model=fish").status_code == 404


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
        return await asyncio.gather(*(classifier.classify.remote(image, None, "pad") for _ in range(CONCURRENT)))

    answers = asyncio.run(ask())
    assert max(answer.batch_size for answer in answers) > 1
    assert max(answer.batch_size for answer in answers) <= 16
    assert all(len(answer.probabilities) == 1 for answer in answers)


def test_a_request_may_name_another_model_and_an_unknown_one_is_a_404_with_the_list(
    server: Server, save_tiny: Callable[..., Bundle], picture: bytes
) -> None:
    save_tiny(server.storage, "birds", class_names=("jay", "owl", "tit"), created_at=datetime.now(UTC))
    for _ in range(4):  # whichever replica answers
        answer: dict[str, Any] = {}
        while "model" not in answer:  # a replica looks into the store at most once a second
            answer = httpx.post(f"{server.url}/predict?model=birds", content=picture, timeout=30).json()
        assert (answer["model"], set(answer["probabilities"])) == ("birds", {"jay", "owl", "tit"})
    refusal = httpx.post(f"{server.url}/predict?model=fish", content=picture)
    assert (refusal.status_code, refusal.json()["detail"]) == (404, "model 'fish' not found. Available: birds@1, pets@1")


def test_predict_gives_the_same_rows_through_the_server_as_with_the_model_itself(server: Server, picture: bytes, tmp_path: Path) -> None:
    (tmp_path / "sound.jpg").write_bytes(picture)
    (tmp_path / "torn.jpg").write_bytes(picture[:100])
    rows = {}
    for name, model in {"there": f"{server.url}?model=pets", "here": "pets"}.items():
        flags = ["--out", str(tmp_path / f"{name}.json"), "--storage", server.storage, "--precision", "fp32", "--top-k", "2"]
        assert predict.main([model, str(tmp_path / "*.jpg"), *flags]) == 0
        rows[name] = json.loads((tmp_path / f"{name}.json").read_text())
    sound, torn = rows["there"]
    assert sound["class_name"] == rows["here"][0]["class_name"]
    assert [entry["probability"] for entry in sound["top_k"]] == pytest.approx(
        [entry["probability"] for entry in rows["here"][0]["top_k"]], abs=2e-6
    )
    assert torn["error"]
    assert rows["here"][1]["error"]
    with pytest.raises(ServerError, match=r"404: model 'fish' not found\. Available"):
        Client(f"{server.url}?model=fish").predict_batch([("sound.jpg", picture)], top_k=1)


def test_the_id_of_a_request_comes_back(server: Server, picture: bytes) -> None:
    response = httpx.post(f"{server.url}/predict", content=picture, headers={"X-Request-Id": "frog-1"})
    assert response.headers.get_list("x-request-id") == ["frog-1"]
    assert httpx.get(f"{server.url}/health").headers["x-request-id"]


def test_prometheus_sees_what_happened(server: Server, picture: bytes) -> None:
    httpx.post(f"{server.url}/predict", content=picture)
    httpx.post(f"{server.url}/predict", content=b"broken")
    [node] = ray.nodes()
    wanted = [
        r'ray_cifar_ray_stage_ms_count{.*stage="inference".*} [1-9]',
        r'ray_cifar_ray_batch_size_count{.*model="pets".*version="1".*} [1-9]',
        r'ray_cifar_ray_predicted_total{.*class_name="(cat|dog|eel)".*} [1-9]',
        r'ray_cifar_ray_refused_total{.*reason="Unprocessable .*} [1-9]',
        r"ray_cifar_ray_pending_images{.*} 0",
    ]

    def all_seen() -> bool:
        text = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=30).text
        return all(re.search(line, text) for line in wanted)

    wait_until(all_seen, timeout_s=30)


class Load:
    """Requests sent at a steady pace from a thread, until the block ends.

    Attributes:
        responses: status, version and seconds of each.
    """

    def __init__(self, url: str, picture: bytes, per_second: float) -> None:
        self._url, self._picture, self._interval_s = url, picture, 1 / per_second
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()))
        self.responses: list[tuple[int, int | None, float]] = []

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def versions(self) -> set[int | None]:
        """Of the latest answers."""
        return {version for _, version, _ in self.responses[-10:]}

    async def _send_all(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client, asyncio.TaskGroup() as group:
            while not self._ended.is_set():
                group.create_task(self._send(client))
                await asyncio.sleep(self._interval_s)

    async def _send(self, client: httpx.AsyncClient) -> None:
        started = time.monotonic()
        response = await client.post("/predict", content=self._picture)
        self.responses.append((response.status_code, response.json().get("version"), time.monotonic() - started))


def statuses() -> list[Any]:
    """What each replica answers with."""
    return list(serve.get_deployment_handle("classifier", APP).broadcast("status").results(timeout_s=30))


def test_promote_and_rollback_reach_all_replicas_under_load_without_an_error_or_a_pause(
    server: Server, save_tiny: Callable[..., Bundle], picture: bytes
) -> None:
    store = ModelStore(server.storage)
    store.promote("pets", 1)
    save_tiny(server.storage)
    with Load(server.url, picture, per_second=50) as load:
        wait_until(lambda: load.versions() == {1}, timeout_s=10)
        for change, version in ((lambda: store.promote("pets", 2), 2), (lambda: store.rollback("pets"), 1)):
            change()
            wait_until(lambda: load.versions() == {version} == {status.model.version for status in statuses()}, timeout_s=10)  # noqa: B023
    assert {status for status, _, _ in load.responses} == {200}
    assert max(seconds for _, _, seconds in load.responses) < 1


def test_a_damaged_version_in_production_replaces_nothing_and_models_says_why(server: Server, picture: bytes) -> None:
    damaged = Path(server.storage) / "models/pets/2/model.safetensors"
    sound = damaged.read_bytes()
    aliases = Path(server.storage) / "models/pets/aliases.json"
    try:
        damaged.write_bytes(sound[:-1])
        aliases.write_text(json.dumps({"production": 2, "previous": 1}))  # `promote` would refuse
        wait_until(lambda: "sha256" in (httpx.get(f"{server.url}/models").json()["problem"] or ""), timeout_s=10)
        assert httpx.post(f"{server.url}/predict", content=picture).json()["version"] == 1
    finally:
        damaged.write_bytes(sound)
        ModelStore(server.storage).promote("pets", 1)


def test_a_killed_model_replica_costs_no_request(server: Server, picture: bytes) -> None:
    def replicas() -> set[int]:
        actors = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "classifier" in actor["name"]]
        return {ray.get(ray.get_actor(**actor).__ray_call__.remote(lambda _: os.getpid())) for actor in actors}

    before = replicas()
    with Load(server.url, picture, per_second=50) as load:
        wait_until(lambda: len(load.responses) > 25, timeout_s=10)
        os.kill(min(before), signal.SIGKILL)
        sent = len(load.responses)
        wait_until(lambda: len(load.responses) > sent + 100, timeout_s=30)
    assert {status for status, _, _ in load.responses} == {200}

"""No request fails while replicas are killed, a version is on trial for a part of the requests, and then promoted."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from ray import serve

from cifar_ray.client import Client
from cifar_ray.errors import ServerError
from cifar_ray.store import ModelStore
from cifar_ray.store.staging.stage_file import Stage, StageFile
from deployments import app
from tests.deployments.conftest import SaveTiny
from tests.deployments.test_serving import free_port, wait_until
from tests.jobs.test_job_chaos import kill, own_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

APP = "trials_chaos"
CLIENTS = 4


class Clients:
    """Clients that ask one after the other, each until the block ends; a client repeats a request to a server that says it is not ready."""

    def __init__(self, url: str, picture: bytes) -> None:
        self.versions: Counter[int] = Counter()
        self.failures: list[str] = []
        self._url, self._picture = url, picture
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_forever) for _ in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_forever(self) -> None:
        client = Client(self._url)
        while not self._over.is_set():
            try:
                self.versions[client.predict(self._picture).version] += 1
            except (ServerError, OSError, http.client.HTTPException) as error:
                self.failures.append(str(error))
            time.sleep(0.05)


def test_killed_replicas_cost_no_request_while_a_version_is_on_trial_and_promoted(
    ray_cluster: None, tmp_path: Path, save_tiny: SaveTiny, picture: bytes
) -> None:
    storage = str(tmp_path)
    for _ in range(2):
        save_tiny(storage)
    store, stages, port = ModelStore(storage), StageFile(storage), free_port()
    store.promote("pets", 1)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        arguments = {"storage": storage, "precision": "fp32", "engine": "torch", "num_replicas": "2", "torch_threads": "1"}
        serve.run(app(arguments | {"cpus_per_replica": "0.1", "cpus_per_ingress": "0.1"}), name=APP)
        with Clients(f"http://127.0.0.1:{port}", picture) as clients:
            wait_until(lambda: clients.versions[1] > 20, timeout_s=60)
            stages.start(store, Stage(name="pets", version=2, share=0.3, withdraws=False))
            wait_until(lambda: clients.versions[2] > 10, timeout_s=120)
            for _ in range(3):
                before = len(own_processes(b":classifier"))
                victim = own_processes(b":classifier")[:1]
                assert kill(b":classifier", only=victim) == 1
                wait_until(lambda before=before: len(own_processes(b":classifier")) >= before, timeout_s=120)
                asked = clients.versions.total()
                wait_until(lambda asked=asked: clients.versions.total() > asked + 40, timeout_s=120)
            store.promote("pets", 2)
            assert kill(b":classifier", only=own_processes(b":classifier")[:1]) == 1
            asked = Counter(clients.versions)
            wait_until(lambda: clients.versions[2] > asked[2] + 100, timeout_s=120)
        assert clients.failures == []
        assert clients.versions[1] > 20
        assert Client(f"http://127.0.0.1:{port}").predict(picture).version == 2
        print(f"answers by version: {dict(clients.versions)}")
    finally:
        serve.shutdown()

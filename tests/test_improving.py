"""The week of a model: the pictures change, people label some, the next version is tried and promoted by its rule."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cifar_ray import __main__ as console
from cifar_ray.captures.capture_files import Captures
from cifar_ray.config import TrainConfig
from cifar_ray.config.api_keys import add_key
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.data import load_splits
from cifar_ray.drift import windows as drift_windows
from cifar_ray.drift.windows import WindowWriter
from cifar_ray.store import ModelStore
from deployments.capturing import recorder
from deployments.http.routes import create_app
from deployments.staging.trials import TrialsInStorage
from tests.deployments.test_ingress import Notes
from tests.web.conftest import LocalClassifier

pytestmark = pytest.mark.slow

BATCH = 100


def changed(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A digit as a new scanner sees it: dark on light."""
    return 255 - image


def png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Server:
    """A server in this process, with everything that `IngressReplica` gives it."""

    def __init__(self, storage: str, folder: Path) -> None:
        self.loop = asyncio.Runner()
        self.keys = {"review": add_key(folder / "keys", "alice", None, "review")}
        config = ServeConfig(storage=storage, engine="torch", api_keys=folder / "keys", capture=1)
        self.trials, self.windows, self.classifier = TrialsInStorage(storage), WindowWriter(storage), LocalClassifier(config)
        self.app = create_app(self.classifier, config, Notes(), trials=self.trials, windows=self.windows)

    def follow(self) -> None:
        """What its threads do every few seconds."""
        self.classifier.models_.refresh()
        self.trials.look()
        self.windows.write()

    def send(self, images: list[np.ndarray[Any, Any]]) -> list[tuple[int, str, str]]:
        """Version, key and class of each picture; 100 pictures a request."""

        async def all_of_them() -> list[tuple[int, str, str]]:
            found = []
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="http://server", headers={"X-API-Key": self.keys["review"]}
            ) as client:
                for start in range(0, len(images), BATCH):
                    files = [("images", (f"{i}.png", png(image))) for i, image in enumerate(images[start : start + BATCH])]
                    identity = f"request-{np.random.default_rng().integers(2**60)}"
                    answer = await client.post("/predict_batch", files=files, headers={"X-Request-Id": identity})
                    assert answer.status_code == 200
                    content = answer.json()
                    found += [(content["version"], f"{identity}#{one['index']}", one["class_name"]) for one in content["predictions"]]
                await asyncio.sleep(0.3)  # comparisons and captures are written beside the requests
            return found

        return self.loop.run(all_of_them())

    def label(self, labels: dict[str, str]) -> None:
        async def all_of_them() -> None:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="http://server", headers={"X-API-Key": self.keys["review"]}
            ) as client:
                for key, name in labels.items():
                    assert (await client.post("/reviews", json={"key": key, "label": name})).status_code == 200

        self.loop.run(all_of_them())


def test_from_changed_pictures_to_a_promoted_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_SHARD_PICTURES", 1)  # a file for each request
    monkeypatch.setattr(drift_windows, "_MIN_S", 0)
    storage = str(tmp_path / "storage")
    flags = ["--storage", storage]
    run = lambda *argv: console.main([*argv, *flags])  # noqa: E731
    assert run("train", "--dataset", "digits", "--epochs", "6") == 0
    splits = load_splits(TrainConfig(dataset="digits", image_size=32))
    assert splits.test is not None
    usual, new = splits.train.images, [changed(image) for image in splits.train.images]
    truth = [splits.train.class_names[label] for label in splits.train.labels]

    server = Server(storage, tmp_path)
    server.send(list(usual[:1100]))
    server.follow()
    assert run("drift", "digits") == 0
    answers = server.send(new[:400])
    server.follow()
    assert run("drift", "digits") == 1
    assert "changed" in capsys.readouterr().out
    before = np.mean([answer == true for (_, _, answer), true in zip(answers, truth, strict=False)])

    assert {one.key for one in Captures(storage).all()} >= {key for _, key, _ in answers}
    server.label({key: true for (_, key, _), true in zip(answers, truth, strict=False)})
    assert (
        run("finetune", "digits", "--with-reviews", "--review-weight", "3", "--epochs", "6", "--rate-factor", "1", "--promote", "never")
        == 0
    )
    told = re.search(r"right on (\d+) reviewed pictures.*digits@1 ([\d.]+) %.*digits@2 ([\d.]+) %", capsys.readouterr().out)
    assert told
    assert float(told[3]) > float(told[2]) + 20

    assert run("store", "stage", "digits@2", "--shadow") == 0
    server.follow()
    assert {version for version, _, _ in server.send(new[400:600])} == {1}
    server.follow()
    assert run("store", "stages") == 0
    assert re.search(r"agreement .*% .* pictures", capsys.readouterr().out)

    assert run("store", "stage", "digits@2", "--share", "50%", "--promote-after", "5", "--if", "errors <= 1 %") == 0
    server.follow()
    for start in range(600, 1400, 100):
        server.send(new[start : start + 100])
    server.follow()
    assert ModelStore(storage).aliases("digits")["production"] == 2
    server.follow()
    after = server.send(new[1400:])
    assert {version for version, _, _ in after} == {2}
    right = np.mean([answer == true for (_, _, answer), true in zip(after, truth[1400:], strict=False)])
    assert right > before + 0.2
    assert [entry.action for entry in ModelStore(storage).log.entries()] == ["promote", "stage", "stage", "promote"]

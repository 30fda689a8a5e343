"""Versions on trial and captured pictures, for requests of other protocols."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cifar_ray.captures.capture_files import Captures
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.store.staging.stage_file import Stage
from deployments.predicting.contract import ModelInfo
from deployments.predicting.sender import Sender
from deployments.protocols.protocol_server import ProtocolServer
from deployments.staging.staged_pipeline import StagedPipeline, is_in_share
from tests.deployments import test_trials
from tests.deployments.protocol_clients import binary_request
from tests.deployments.test_ingress import Notes
from tests.deployments.test_protocols_grpc import infer
from tests.deployments.test_trials import Fixed, Server, TwoVersions

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
SAME_SIZE = dataclasses.replace(test_trials.NEW, image_size_px=16)


@pytest.fixture
def same_size(monkeypatch: pytest.MonkeyPatch) -> ModelInfo:
    """The version on trial takes what production takes."""
    monkeypatch.setattr(test_trials, "NEW", SAME_SIZE)
    return SAME_SIZE


def post(server: ProtocolServer, path: str, **request: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.http_app), base_url="http://server") as client:
            return await client.post(path, **request)

    return asyncio.run(once())


@pytest.mark.usefixtures("same_size")
def test_a_client_gets_its_version_over_every_protocol(picture: bytes) -> None:
    trials = Fixed(Stage(name="pets", version=4, share=0.5))
    server = ProtocolServer(TwoVersions(), ServeConfig(client_header="X-User"), Notes(), trials=trials)
    for version in (3, 4):
        name = next(c for c in map(str, range(99)) if is_in_share(trials.trial.stage, c) == (version == 4))
        sent = binary_request(PIXELS, {"name": "label"})
        sent["headers"]["X-User"] = name
        assert post(server, "/v2/models/pets/infer", **sent).json()["model_version"] == str(version)
        assert infer(server, PIXELS, model_version="", metadata=(("x-user", name),)).model_version == str(version)
        before = trials.trial.tally.staged.requests
        assert post(server, "/predictions/pets", content=picture, headers={"X-User": name}).status_code == 200
        assert trials.trial.tally.staged.requests - before == (version == 4)


def test_pixels_that_a_version_on_trial_does_not_take_are_answered_by_production_and_count_for_nothing() -> None:
    trials = Fixed(Stage(name="pets", version=4, share=0.5))
    server = ProtocolServer(TwoVersions(), ServeConfig(client_header="X-User"), Notes(), trials=trials)
    name = next(c for c in map(str, range(99)) if is_in_share(trials.trial.stage, c))

    def ask(pixels: Any) -> Any:
        sent = binary_request(pixels, {"name": "label"})
        sent["headers"]["X-User"] = name
        return post(server, "/v2/models/pets/infer", **sent).json()

    answer = ask(PIXELS)
    assert (answer["model_version"], answer["outputs"][0]["data"]) == ("3", ["eel", "eel"])
    assert "the model takes 16 × 16" in ask(PIXELS[:, 1:])["error"]
    tally = trials.trial.tally
    assert (tally.staged.requests, tally.staged.failed, tally.production.requests, tally.production.failed) == (0, 0, 1, 0)


@pytest.mark.parametrize("takes_them", [True, False])
def test_a_shadow_sees_pixels_of_its_size(takes_them: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if takes_them:
        monkeypatch.setattr(test_trials, "NEW", SAME_SIZE)
    server = Server(0)
    server.classifier.new = "cat"
    staged: StagedPipeline = server.staged

    async def ask() -> None:
        await staged.run(list(PIXELS), "pets", Sender({}, "X-Client-Id", None))
        await staged.finish_comparisons()

    asyncio.run(ask())
    assert (server.tally.compared, server.tally.staged.failed) == (2 if takes_them else 0, 0)
    if takes_them:
        [(_, pixels, _)] = server.differed
        assert np.array_equal(pixels, PIXELS)


def test_captured_pixels_are_pictures_that_people_can_look_at(tmp_path: Path) -> None:
    server = ProtocolServer(TwoVersions(), ServeConfig(storage=str(tmp_path), capture=1), Notes())

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.http_app), base_url="http://server") as client:
            sent = binary_request(PIXELS)
            sent["headers"]["X-Request-Id"] = "frog"
            await client.post("/v2/models/pets/infer", **sent)
        await server.api._recorder.flush()

    asyncio.run(ask())
    for index in range(2):
        kept = Captures(str(tmp_path)).find(f"frog#{index}")
        assert kept is not None
        assert np.array_equal(Image.open(io.BytesIO(kept.picture)), PIXELS[index])

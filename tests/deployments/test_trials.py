"""Versions on trial while a server runs: no request fails, is delayed, or is answered by the wrong version because of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from cifar_ray.config import ResizePolicy
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.store import ModelStore
from cifar_ray.store.staging.stage_file import Stage, StageFile
from cifar_ray.store.staging.tallies import read_tallies
from deployments.http.routes import create_app
from deployments.predicting.contract import Classified, ModelInfo, Status
from deployments.predicting.pipeline import Pipeline
from deployments.predicting.sender import Sender
from deployments.replicas.live_models import LiveModels
from deployments.staging import comparisons
from deployments.staging.staged_pipeline import StagedPipeline, is_in_share
from deployments.staging.trials import Trial, Trials, TrialsInStorage
from tests.deployments.conftest import SaveTiny
from tests.deployments.test_ingress import PETS, FakeClassifier, Notes

NEW = ModelInfo("pets", 4, ("cat", "dog", "eel"), 8, "crop")


class TwoVersions(FakeClassifier):
    """Version 3 is in production and says eel; version 4 says what `new` tells it to, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.others = {"pets": PETS, "pets@3": PETS, "pets@4": NEW, "pets@production": PETS}
        self.new = "eel"
        self.broken: Exception | None = None
        self.is_loading = False
        self.asked: list[str | None] = []

    async def status(self, reference: str | None = None) -> Status:
        if reference == "pets@4" and self.is_loading:
            return Status(None, "pets@4 is being loaded", is_loading=True)
        return await super().status(reference)

    async def classify(self, images: npt.NDArray[np.uint8], reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        self.asked.append(reference)
        if reference != "pets@4":
            return await super().classify(images, reference, resize_policy)
        if self.broken:
            raise self.broken
        row = np.array([name == self.new for name in NEW.class_names], np.float32)
        return Classified(NEW, np.tile(row if self.new else row * np.nan, (len(images), 1)), np.zeros(len(images), np.bool_), 1, 0.001)


class Fixed(Trials):
    def __init__(self, stage: Stage) -> None:
        self.trial = Trial(stage)

    def find(self, name: str) -> Trial | None:
        return self.trial if name == self.trial.stage.name else None


class Server:
    """A pipeline with a version on trial."""

    def __init__(self, share: float, **settings: object) -> None:
        self.classifier, self.notes, config = TwoVersions(), Notes(), ServeConfig(**settings)  # type: ignore[arg-type]
        self.trials = Fixed(Stage(name="pets", version=4, share=share))
        self.tally = self.trials.trial.tally
        self.differed: list[Any] = []
        self.pipeline = Pipeline(self.classifier, config, self.notes)
        self.staged = StagedPipeline(self.pipeline, self.trials, config, self.notes, lambda *found: self.differed.append(found))

    def ask(self, picture: bytes, times: int = 1, reference: str | None = "pets", client: str | None = None) -> list[int]:
        """The versions that answer."""

        async def all_of_them() -> list[int]:
            versions = []
            for _ in range(times):
                versions.append((await self.staged.run([picture], reference, Sender({}, "X-Client-Id", client))).model.version)
                await self.staged.finish_comparisons()
            return versions

        return asyncio.run(all_of_them())


def test_a_shadow_sees_every_request_and_answers_none(picture: bytes) -> None:
    server = Server(0)
    assert server.ask(picture, 20) == [3] * 20
    assert server.tally.production.requests == server.tally.staged.requests == server.tally.compared == server.tally.agreed == 20
    assert server.classifier.asked.count("pets@4") == 20


def test_pictures_to_which_both_give_another_class_are_counted(picture: bytes) -> None:
    server = Server(0)
    server.classifier.new = "cat"
    server.ask(picture, 5, client="alice")
    assert (server.tally.compared, server.tally.agreed) == (5, 0)
    assert server.tally.staged.confidence_sum == 5
    assert [(sender.client, pictures) for sender, pictures, _ in server.differed] == [("alice", [picture])] * 5


def test_a_share_is_answered_and_compared_with_production(picture: bytes) -> None:
    server = Server(0.25)
    versions = server.ask(picture, 400)
    answered = versions.count(4)
    assert abs(answered - 100) < 3 * (400 * 0.25 * 0.75) ** 0.5
    assert server.tally.staged.requests == server.tally.compared == answered
    assert server.tally.production.requests == 400 - answered


def test_a_client_stays_with_one_version_and_keeps_it_when_the_share_grows(picture: bytes) -> None:
    server = Server(0.3)
    by_client = {client: set(server.ask(picture, 3, client=client)) for client in map(str, range(40))}
    assert all(len(versions) == 1 for versions in by_client.values())
    assert {3, 4} == set().union(*by_client.values())
    small, large = (Stage(name="pets", version=4, share=share) for share in (0.1, 0.4))
    inside = [client for client in map(str, range(2000)) if is_in_share(small, client)]
    assert 140 <= len(inside) <= 260
    assert all(is_in_share(large, client) for client in inside)


@pytest.mark.parametrize("reference", ["pets@3", "pets@4"])
def test_a_request_that_names_a_version_gets_it(picture: bytes, reference: str) -> None:
    server = Server(0.5)
    assert set(server.ask(picture, 10, reference)) == {int(reference[-1])}
    assert server.tally.production.requests == server.tally.staged.requests == 0


def test_the_default_model_is_on_trial_too_unless_the_operator_has_chosen_a_version(picture: bytes) -> None:
    assert set(Server(0.99).ask(picture, 30, None)) == {3, 4}  # the first answer tells which model it is
    assert set(Server(0.99, model="pets@3").ask(picture, 30, None)) == {3}


@pytest.mark.parametrize("kind", ["exception", "not numbers", "hangs"])
def test_production_answers_when_the_version_on_trial_fails(picture: bytes, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(0.99, request_timeout_s=0.2)
    if kind == "exception":
        server.classifier.broken = RuntimeError("a bug")
    elif kind == "not numbers":
        server.classifier.new = ""
    else:
        answer = server.classifier.classify

        async def slow(images: npt.NDArray[np.uint8], reference: str | None, policy: ResizePolicy) -> Classified | Status:
            await asyncio.sleep(60 if reference == "pets@4" else 0)
            return await answer(images, reference, policy)

        monkeypatch.setattr(server.classifier, "classify", slow)
    assert server.ask(picture, 5, client="always", reference="pets") == [3] * 5
    assert server.tally.staged.failed == 5
    assert server.tally.production.failed == 0


def test_a_shadow_that_fails_is_counted_and_nobody_notices(picture: bytes) -> None:
    server = Server(0)
    server.classifier.broken = RuntimeError("a bug")
    assert server.ask(picture, 4) == [3] * 4
    assert (server.tally.staged.failed, server.tally.compared) == (4, 0)


def test_requests_do_not_wait_until_the_version_is_loaded(picture: bytes) -> None:
    for share in (0, 0.99):
        server = Server(share)
        server.classifier.is_loading = True
        assert server.ask(picture, 3, client="always") == [3] * 3
        assert server.tally.not_ready == 3
        assert server.tally.staged.requests == 0


def test_an_unreadable_picture_is_the_fault_of_neither_version() -> None:
    server = Server(0.5)
    server.ask(b"no picture", 20)
    assert server.tally.staged.failed == server.tally.production.failed == server.tally.compared == 0


def test_comparisons_wait_for_a_moment_without_requests_and_are_dropped_without_one(
    picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparisons, "_IDLE_TIMEOUT_S", 0.02)
    monkeypatch.setattr(Pipeline, "is_idle", property(lambda _: False))
    server = Server(0)
    server.ask(picture, 3)
    assert (server.tally.dropped, server.tally.staged.requests) == (3, 0)


def test_the_queue_of_comparisons_is_bounded(picture: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(0)

    async def burst() -> None:
        outcome = await server.pipeline.run([picture], "pets")
        queue = comparisons.Comparisons(server.pipeline, server.notes, lambda *_: None)
        for _ in range(100):
            queue.offer(server.trials.trial, Sender({}, "X-Client-Id", None), [picture] * 50, outcome, "pets@4")
        assert server.tally.dropped == 100 - 64
        await queue.finish()

    asyncio.run(burst())
    assert max(len(images) for images in server.classifier.calls) <= 8, "a whole batch would delay the next request"
    monkeypatch.setattr(comparisons, "_MAX_WAITING_BYTES", len(picture))
    server.tally.dropped = 0

    async def large() -> None:
        outcome = await server.pipeline.run([picture], "pets")
        queue = comparisons.Comparisons(server.pipeline, server.notes, lambda *_: None)
        queue.offer(server.trials.trial, Sender({}, "X-Client-Id", None), [picture, picture], outcome, "pets@4")
        await queue.finish()

    asyncio.run(large())
    assert server.tally.dropped == 1


def test_the_answer_and_a_header_name_the_version(picture: bytes) -> None:
    classifier, trials = TwoVersions(), Fixed(Stage(name="pets", version=4, share=0.5))
    app = create_app(classifier, ServeConfig(client_header="X-User"), Notes(), trials=trials)
    clients = {version: next(c for c in map(str, range(99)) if is_in_share(trials.trial.stage, c) == (version == 4)) for version in (3, 4)}

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            for version, name in clients.items():
                for path, field in (("/predict", "image"), ("/predict_batch", "images")):
                    answer = await client.post(path, files={field: picture}, data={"model": "pets"}, headers={"X-User": name})
                    assert answer.json()["version"] == version
                    assert answer.headers["X-Model"] == f"pets@{version}"

    asyncio.run(ask())


def test_trials_follow_the_storage_and_write_what_they_observe(tmp_path: Path, save_tiny: SaveTiny) -> None:
    storage = str(tmp_path)
    for _ in range(2):
        save_tiny(storage)
    store, stages, trials, others = ModelStore(storage), StageFile(storage), TrialsInStorage(storage), TrialsInStorage(storage)
    store.promote("pets", 1)
    trials.look()
    assert trials.find("pets") is None
    stage = Stage(name="pets", version=2, share=0.5)
    stages.start(store, stage)
    for one in (trials, others):
        one.look()
        trial = one.find("pets")
        assert trial is not None
        trial.tally.staged.answered([0.5], 0, 3.0)
        one.look()
    assert read_tallies(stages.files, stage.folder).staged.requests == 2
    trial = others.find("pets")
    assert trial is not None
    for _ in range(20):
        trial.tally.staged.could_not_answer()
    others.look()
    assert others.find("pets") is None, "withdrawn"
    assert stages.read() == ()
    trials.look()
    assert trials.find("pets") is None
    assert store.log.entries()[-1].action == "withdraw"
    assert not list(tmp_path.glob("stages/pets/*"))


def test_a_storage_that_is_away_does_not_stop_the_trial(tmp_path: Path, save_tiny: SaveTiny, caplog: pytest.LogCaptureFixture) -> None:
    storage = str(tmp_path)
    for _ in range(2):
        save_tiny(storage)
    ModelStore(storage).promote("pets", 1)
    trials = TrialsInStorage(storage)
    StageFile(storage).start(ModelStore(storage), Stage(name="pets", version=2, share=0.5))
    trials.look()
    (tmp_path / "stages" / "stages.json").write_text("cut")
    with caplog.at_level("WARNING"):
        trials.look()
        trials.look()
    assert trials.find("pets") is not None
    assert len([record for record in caplog.records if "cannot be followed" in record.message]) == 1


def test_replicas_load_versions_on_trial_and_keep_them(tmp_path: Path, save_tiny: SaveTiny) -> None:
    storage = str(tmp_path)
    for _ in range(3):
        save_tiny(storage)
    store, stages = ModelStore(storage), StageFile(storage)
    store.promote("pets", 1)
    live = LiveModels(ServeConfig(storage=storage, max_batch_size=2, model_memory_bytes=0), "cpu")
    stages.start(store, Stage(name="pets", version=2, share=0))
    live.refresh()
    loaded = live.find("pets@2")
    assert loaded is not None
    assert live.find(None) is not loaded
    stages.end(stages.find("pets"))
    live.refresh()
    assert live.find("pets@2") is None, "other models may need the memory"


def test_a_version_on_trial_that_is_not_loaded_yet_says_so(tmp_path: Path, save_tiny: SaveTiny) -> None:
    storage = str(tmp_path)
    for _ in range(2):
        save_tiny(storage)
    store = ModelStore(storage)
    store.promote("pets", 1)
    live = LiveModels(ServeConfig(storage=storage, max_batch_size=2), "cpu")
    live.refresh()
    assert live.status_on_trial("pets@2") is None
    StageFile(storage).start(store, Stage(name="pets", version=2, share=0))
    path = tmp_path / "models" / "pets" / "2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    live.refresh()
    status = live.status_on_trial("pets@2")
    assert status is not None
    assert not status.is_loading
    assert "pets@2" in status.problem

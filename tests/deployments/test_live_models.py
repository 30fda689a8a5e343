from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import BundleError, UnknownModelError
from cifar_ray.store import Bundle, ModelStore
from cifar_ray.store.gallery import GALLERY_FILE
from deployments.predicting.contract import LoadedVersion, StoredGallery, StoredModel
from deployments.replicas import live_models, store_listing
from deployments.replicas.live_models import LiveModels

SaveTiny = Callable[..., Bundle]


def look(storage: Path, model: str | None = None, **settings: Any) -> LiveModels:
    live = LiveModels(ServeConfig(storage=str(storage), model=model, max_batch_size=2, **settings), "cpu")
    live.refresh()
    return live


def damage(storage: Path, name: str, version: int) -> None:
    path = storage / "models" / name / str(version) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_an_empty_store_gives_a_status_that_says_what_to_type(tmp_path: Path) -> None:
    status = look(tmp_path).status
    assert status.model is None
    assert status.problem == f"no model yet in {tmp_path}. Train one: cifar-ray train --storage {tmp_path}"


def test_the_first_model_is_picked_up(tmp_path: Path, save_tiny: SaveTiny) -> None:
    live = look(tmp_path)
    save_tiny(str(tmp_path), "pets")
    live.refresh()
    assert live.status.model is not None
    assert (live.status.model.reference, live.status.model.class_names) == ("pets@1", ("cat", "dog", "eel"))
    assert live.status.problem == ""


def test_the_default_is_what_was_promoted_last_when_the_server_started(
    tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = ModelStore(str(tmp_path)), iter(range(1_800_000_000_000, 1_900_000_000_000, 1000))
    monkeypatch.setattr("cifar_ray.store.aliases._now_ms", lambda: next(now))
    running = []
    for name in ("cifar10", "photos", "cifar10"):  # trained and served one after the other
        version = save_tiny(str(tmp_path), name).version
        store.promote(name, version)
        running.append((look(tmp_path), name))
        for live, started_with in running:
            live.refresh()
            assert live.status.require().name == started_with
    assert running[0][0].status.require().reference == "cifar10@2"


def test_replicas_of_one_server_agree_whenever_they_started(tmp_path: Path, save_tiny: SaveTiny) -> None:
    store = ModelStore(str(tmp_path))
    for day, name in ((1, "pets"), (2, "ants")):
        save_tiny(str(tmp_path), name, created_at=datetime(2025, 1, day, tzinfo=UTC))
    config = ServeConfig(storage=str(tmp_path), max_batch_size=2)
    for names, expected in ((("ants", "pets"), "ants"), ((), "pets")):  # the store was empty when the server started
        early = LiveModels(config, "cpu", names)
        early.refresh()
        save_tiny(str(tmp_path), "bees", created_at=datetime(2025, 1, 3, tzinfo=UTC))
        store.promote("bees", 1)
        late = LiveModels(config, "cpu", names)
        for live in (early, late):
            live.refresh()
            assert live.status.require().name == expected
    damage(tmp_path, "ants", 1)
    status = LiveModels(config, "cpu", ("ants", "pets"))
    status.refresh()
    assert status.status.require().name == "pets"
    assert "ants@1" in status.status.problem


def test_promote_and_rollback_swap_the_version_and_who_holds_the_old_one_keeps_it(tmp_path: Path, save_tiny: SaveTiny) -> None:
    store = ModelStore(str(tmp_path))
    save_tiny(str(tmp_path))
    store.promote("pets", 1)
    live = look(tmp_path)
    live.load("pets")
    in_flight = live.find(None)
    save_tiny(str(tmp_path))
    for change, expected in (
        (lambda: None, "pets@1"),
        (lambda: store.promote("pets", 2), "pets@2"),
        (lambda: store.rollback("pets"), "pets@1"),
    ):
        change()
        live.refresh()
        for reference in (None, "pets"):
            now = live.find(reference)
            assert now is not None
            assert now.info.reference == expected
    assert in_flight is not None
    assert in_flight.predictor.predict(np.zeros((1, 16, 16, 3), np.uint8)).probabilities.shape == (1, 3)


def test_without_production_the_newest_version_answers(tmp_path: Path, save_tiny: SaveTiny) -> None:
    save_tiny(str(tmp_path))
    live = look(tmp_path)
    save_tiny(str(tmp_path))
    live.refresh()
    assert live.status.model is not None
    assert live.status.model.version == 2


@pytest.mark.parametrize("reference", [None, "pets"])
def test_a_damaged_version_never_replaces_a_good_one(
    tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch, reference: str | None
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(live_models.logger, "warning", lambda text, *values, **_: logged.append(text % values))
    save_tiny(str(tmp_path))
    live = look(tmp_path)
    live.load("pets")
    save_tiny(str(tmp_path), "ants", created_at=datetime(2030, 1, 1, tzinfo=UTC))
    save_tiny(str(tmp_path))
    damage(tmp_path, "pets", 2)
    for _ in range(3):
        live.refresh()
    present = live.find(reference)
    assert present is not None
    assert present.info.reference == "pets@1"
    assert "pets@2" in live.status.problem
    assert "pets@2" in live.stored()[1].problem
    assert logged == [f"still serving pets@1: {live.status.problem}"] * 2  # once for the default, once for the name


def test_a_replica_that_starts_beside_a_damaged_production_version_answers_with_the_previous_one(
    tmp_path: Path, save_tiny: SaveTiny
) -> None:
    for version in (1, 2):
        save_tiny(str(tmp_path))
        ModelStore(str(tmp_path)).promote("pets", version)
    damage(tmp_path, "pets", 2)
    status = look(tmp_path).status
    assert status.model is not None
    assert status.model.version == 1
    assert "pets@2" in status.problem


def test_without_a_production_version_the_newest_that_is_sound_answers(tmp_path: Path, save_tiny: SaveTiny) -> None:
    for _ in range(3):
        save_tiny(str(tmp_path))
    damage(tmp_path, "pets", 3)
    (tmp_path / "models/pets/2/manifest.json").write_text("{")
    status = look(tmp_path).status
    assert status.model is not None
    assert status.model.version == 1
    assert re.search(r"pets@3 .*sha256.*; restore it or delete this version; .*pets@2 .*JSON.*; restore it or delete", status.problem)


@pytest.mark.slow
def test_models_on_an_object_store_answer_also_while_it_is_away(s3: Any, save_tiny: SaveTiny) -> None:
    storage = s3.uri("storage")
    save_tiny(storage)
    live = LiveModels(ServeConfig(storage=storage, max_batch_size=2), "cpu")
    live.refresh()
    assert live.status.model is not None
    assert live.status.model.reference == "pets@1"
    save_tiny(storage)
    s3.become("away")
    live.refresh()
    assert (live.load("pets@1").info.reference, "NETWORK_CONNECTION" in live.status.problem) == ("pets@1", True)
    s3.become("back")
    ModelStore(storage).promote("pets", 2)
    live.refresh()
    assert (live.status.model.reference, live.status.problem) == ("pets@2", "")
    assert [(model.name, model.versions, model.aliases) for model in live.stored()] == [("pets", (1, 2), {"production": 2})]


def test_a_model_that_a_request_names_is_loaded_and_stays_as_new_as_the_store(
    tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_listing, "_FRESH_S", 0.0)
    for name in ("pets", "birds"):
        save_tiny(str(tmp_path), name)
    live = look(tmp_path, model="pets")
    assert live.find("birds") is None
    assert live.load("birds").info.reference == "birds@1"
    save_tiny(str(tmp_path), "birds")
    live.refresh()
    assert live.load("birds").info.reference == "birds@2"
    assert live.load("birds@1").info.reference == "birds@1"
    ModelStore(str(tmp_path)).delete("birds@1")
    live.refresh()
    with pytest.raises(UnknownModelError, match=r"model 'birds@1' not found\. Available: birds@2, pets@1$"):
        live.load("birds@1")


@pytest.mark.parametrize("reference", ["fish", "pets@7", "pets@best", "../pets", "/etc/passwd", "pets@../1", "", "a\nb"])
def test_an_unknown_model_is_refused_with_the_list_and_without_the_place(tmp_path: Path, save_tiny: SaveTiny, reference: str) -> None:
    save_tiny(str(tmp_path))
    live = look(tmp_path)
    with pytest.raises(UnknownModelError) as refusal:
        live.load(reference)
    assert str(refusal.value) == f"model {reference!r} not found. Available: pets@1"


def test_the_model_not_used_for_longest_is_dropped_when_memory_runs_short_but_never_the_servers_own(
    tmp_path: Path, save_tiny: SaveTiny
) -> None:
    names = ["own", "ants", "bees", "cows"]
    for name in names:
        save_tiny(str(tmp_path), name)
    one = sum(tensor.nbytes for tensor in ModelStore(str(tmp_path)).load("own").weights.values())
    live = look(tmp_path, model="own", model_memory_bytes=3 * one)
    for name in ("own", "ants", "bees"):  # `own` shares its weights with the default
        live.load(name)
    assert in_memory(live) == ["ants", "bees", "own"]
    live.find("ants")
    live.load("cows")
    assert in_memory(live) == ["ants", "cows", "own"]
    alone = look(tmp_path, model="own", model_memory_bytes=0)
    for name in ("ants", "bees"):
        alone.load(name)
        assert in_memory(alone) == [name, "own"]
    alone.refresh()
    assert in_memory(alone) == ["own"]


def in_memory(live: LiveModels) -> list[str]:
    return [model.name for model in live.stored() if model.loaded]


def test_a_model_asked_for_is_waited_for_and_no_other_served(tmp_path: Path, save_tiny: SaveTiny) -> None:
    save_tiny(str(tmp_path), "cifar10")
    live = look(tmp_path, model="digits")
    assert live.status.model is None
    assert "model digits not found" in live.status.problem
    assert "Available: cifar10" in live.status.problem
    assert "--dataset digits" in live.status.problem
    save_tiny(str(tmp_path), "digits")
    live.refresh()
    assert live.status.model is not None
    assert live.status.model.name == "digits"


def test_a_version_can_be_asked_for(tmp_path: Path, save_tiny: SaveTiny) -> None:
    for _ in range(2):
        save_tiny(str(tmp_path), "pets")
    model = look(tmp_path, model="pets@1").status.model
    assert model is not None
    assert model.version == 1
    assert "pets@3" in look(tmp_path, model="pets@3").status.problem


def test_a_damaged_bundle_is_named_never_loaded_and_skipped_where_another_will_do(
    tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(live_models.logger, "warning", lambda text, *values, **_: logged.append(text % values))
    save_tiny(str(tmp_path), "ants")
    damage(tmp_path, "ants", 1)
    live = look(tmp_path)
    for _ in range(3):
        live.refresh()
    assert live.status.model is None
    assert "ants@1" in live.status.problem
    assert "sha256" in live.status.problem
    assert logged == [f"no model to serve: {live.status.problem}"]
    save_tiny(str(tmp_path), "birds")
    live.refresh()
    assert live.status.model is not None
    assert live.status.model.name == "birds"


def test_a_damaged_bundle_is_not_read_again_at_once_but_a_restored_one_is_found(
    tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(str(tmp_path))
    path = tmp_path / "models/pets/1/model.safetensors"
    sound = path.read_bytes()
    damage(tmp_path, "pets", 1)
    live = look(tmp_path)
    path.write_bytes(sound)
    live.refresh()
    assert live.status.model is None
    monkeypatch.setattr(live_models, "RETRY_DAMAGED_S", 0.0)
    live.refresh()
    assert live.status.model is not None


def test_an_unforeseen_failure_keeps_the_server_up(tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(str(tmp_path))

    def fail(*_: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(ModelStore, "load", fail)
    assert look(tmp_path).status.problem == "loading a model failed: RuntimeError: out of memory"


def test_stored_models_say_which_version_is_in_memory(tmp_path: Path, save_tiny: SaveTiny) -> None:
    for name, metrics in (("pets", {"test_accuracy": 0.75}), ("pets", {}), ("birds", {})):
        save_tiny(str(tmp_path), name, metrics=metrics)
    ModelStore(str(tmp_path)).promote("pets", 1)
    assert look(tmp_path, model="pets", engine="torch", precision="fp32").stored() == [
        StoredModel("birds", (1,), {}, (), ("cat", "dog", "eel"), None),
        StoredModel("pets", (1, 2), {"production": 1}, (LoadedVersion(1, "torch", "fp32"),), ("cat", "dog", "eel"), 0.75),
    ]


def test_the_gallery_of_any_version_is_read_from_its_bundle_without_loading_it(tmp_path: Path, save_tiny: SaveTiny) -> None:
    bundle = save_tiny(str(tmp_path))
    ModelStore(str(tmp_path)).save("ants", bundle.manifest, bundle.weights, {GALLERY_FILE: b"{}"})
    live = look(tmp_path, "pets")
    assert live.gallery(None) == StoredGallery("pets", 1, None)
    assert live.gallery("ants") == live.gallery("ants@1") == StoredGallery("ants", 1, b"{}")
    assert live.find("ants@1") is None
    with pytest.raises(UnknownModelError, match=r"Available: ants@1, pets@1$"):
        live.gallery("../pets")
    (tmp_path / "models" / "ants" / "1" / GALLERY_FILE).write_bytes(b"{!")
    with pytest.raises(BundleError, match=GALLERY_FILE):
        live.gallery("ants")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_ray.store import Bundle, ModelStore
from deployments import live_model
from deployments.config import ServeConfig
from deployments.contract import StoredModel
from deployments.live_model import LiveModel

SaveTiny = Callable[..., Bundle]


def look(storage: Path, model: str | None = None) -> LiveModel:
    live = LiveModel(ServeConfig(storage=str(storage), model=model, max_batch_size=2), "cpu")
    live.refresh()
    return live


def damage(storage: Path, name: str, version: int) -> None:
    path = storage / "models" / name / str(version) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_an_empty_store_gives_a_status_that_says_what_to_type(tmp_path: Path) -> None:
    status = look(tmp_path).status
    assert status.model is None
    assert status.problem == f"no model yet in {tmp_path}; train one: python -m cifar_ray.train --storage {tmp_path}"


def test_the_first_model_is_picked_up_and_kept(tmp_path: Path, save_tiny: SaveTiny) -> None:
    live = look(tmp_path)
    save_tiny(str(tmp_path), "pets")
    live.refresh()
    assert live.status.model is not None
    assert (live.status.model.name, live.status.model.version, live.status.model.class_names) == ("pets", 1, ("cat", "dog", "eel"))
    assert live.status.problem == ""
    save_tiny(str(tmp_path), "cifar10")
    live.refresh()
    assert live.status.model.name == "pets"


def test_cifar10_comes_first_and_then_the_alphabet(tmp_path: Path, save_tiny: SaveTiny) -> None:
    for name, chosen in (("pets", "pets"), ("digits", "digits"), ("birds", "birds"), ("cifar10", "cifar10"), ("ants", "cifar10")):
        save_tiny(str(tmp_path), name)
        model = look(tmp_path).status.model
        assert model is not None
        assert model.name == chosen


def test_a_model_asked_for_is_waited_for_and_no_other_served(tmp_path: Path, save_tiny: SaveTiny) -> None:
    save_tiny(str(tmp_path), "cifar10")
    live = look(tmp_path, model="digits")
    assert live.status.model is None
    assert "no model digits" in live.status.problem
    assert "there is: cifar10" in live.status.problem
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
    monkeypatch.setattr(live_model.logger, "warning", lambda text, *values, **_: logged.append(text % values))
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
    monkeypatch.setattr(live_model, "RETRY_DAMAGED_S", 0.0)
    live.refresh()
    assert live.status.model is not None


def test_an_unforeseen_failure_keeps_the_server_up(tmp_path: Path, save_tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(str(tmp_path))

    def fail(*_: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(ModelStore, "load", fail)
    assert look(tmp_path).status.problem == "loading a model failed: RuntimeError: out of memory"


def test_stored_models_say_which_version_is_in_memory(tmp_path: Path, save_tiny: SaveTiny) -> None:
    for name in ("pets", "pets", "birds"):
        save_tiny(str(tmp_path), name)
    ModelStore(str(tmp_path)).promote("pets", 1)
    assert look(tmp_path, model="pets").stored() == [
        StoredModel("birds", (1,), {}, None),
        StoredModel("pets", (1, 2), {"production": 1}, 1),
    ]

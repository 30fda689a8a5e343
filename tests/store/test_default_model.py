"""Without a name, the model that was promoted last is served."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.store import Manifest, ModelStore
from cifar_ray.store.default_model import last_promoted_first
from deployments.application import names_at_start

MakeManifest = Callable[..., Manifest]
Weights = dict[str, torch.Tensor]
SAVED = Path(__file__).parents[1] / "saved"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that is a second later at each promotion."""
    times = [1_800_000_000_000]

    def tick() -> int:
        times[0] += 1000
        return times[0]

    monkeypatch.setattr("cifar_ray.store.aliases._now_ms", tick)
    return times


@pytest.mark.usefixtures("clock")
def test_promotions_and_rollbacks_decide_whatever_the_names_and_the_times_of_files(
    store: ModelStore, manifest: Manifest, weights: Weights, tmp_path: Path
) -> None:
    for name in ("cifar10", "photos", "ants"):
        for _ in range(2):
            store.save(name, manifest, weights)
        store.promote(name, 1)
    assert last_promoted_first(store) == ["ants", "photos", "cifar10"]
    store.promote("photos", 2)
    assert last_promoted_first(store) == ["photos", "ants", "cifar10"]
    store.promote("cifar10", 1)  # in production already; the user asks for it again
    assert last_promoted_first(store) == ["cifar10", "photos", "ants"]
    store.rollback("photos")
    copy = ModelStore(str(shutil.copytree(tmp_path / "models", tmp_path / "copy/models", copy_function=shutil.copyfile).parent))
    assert last_promoted_first(copy) == ["photos", "cifar10", "ants"]
    store.delete("photos@previous", force=True)
    assert last_promoted_first(store) == ["photos", "cifar10", "ants"]
    assert store.aliases("photos") == {"production": 1}
    assert names_at_start(ServeConfig(storage=str(tmp_path))) == ("photos", "cifar10", "ants")


def test_a_name_without_production_comes_after_all_others_and_a_damaged_one_last(
    store: ModelStore, make_manifest: MakeManifest, weights: Weights, tmp_path: Path
) -> None:
    for day, name in enumerate(("old", "new", "promoted", "damaged"), 1):
        store.save(name, make_manifest(created_at=datetime(2025, 1, day, tzinfo=UTC)), weights)
    store.promote("promoted", 1)
    (tmp_path / "models/damaged/1/manifest.json").write_text("{")
    (tmp_path / "models/damaged/aliases.json").write_text("{")
    assert last_promoted_first(store) == ["promoted", "new", "old", "damaged"]


def test_a_store_of_release_0_1_counts_from_the_creation_of_its_production_version(
    make_manifest: MakeManifest, weights: Weights, tmp_path: Path
) -> None:
    shutil.copytree(SAVED / "models", tmp_path / "models")
    store = ModelStore(str(tmp_path))
    created = store.manifest("digits@1").created_at
    assert store.promoted_at("digits") == created
    store.save("older", make_manifest(created_at=datetime(2020, 1, 1, tzinfo=UTC)), weights)
    (tmp_path / "models/older/aliases.json").write_text('{"production": 1}')
    assert last_promoted_first(store) == ["digits", "older"]
    before = datetime.now(UTC)
    store.promote("older", 1)
    assert last_promoted_first(store) == ["older", "digits"]
    promoted = store.promoted_at("older")
    assert promoted is not None
    assert abs((promoted - before).total_seconds()) < 60


def test_release_0_1_can_still_read_the_aliases(three: ModelStore, tmp_path: Path) -> None:
    three.promote("pets", 2)
    content = json.loads((tmp_path / "models/pets/aliases.json").read_text())
    assert content["production"] == 2
    assert all(isinstance(value, int) and value >= 1 for value in content.values())
    assert three.aliases("pets") == {"production": 2}
    assert three.promoted_at("pets") is not None


def test_a_store_that_cannot_be_read_leaves_the_choice_to_the_replicas(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("not a folder")
    assert names_at_start(ServeConfig(storage=str(tmp_path))) is None

"""Requests for models that do not exist cost the store one look a second, and the loading thread nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import BundleError, StoreError, UnknownModelError
from cifar_ray.store import Bundle, ModelStore
from deployments.predicting.contract import Status
from deployments.replicas.classifier_replica import ClassifierReplica
from deployments.replicas.live_models import LiveModels
from deployments.replicas.store_listing import StoreListing

SaveTiny = Callable[..., Bundle]


class CountedStore(ModelStore):
    """Counts looks into the storage, and may fail."""

    looks = 0
    failure = ""

    def names(self) -> list[str]:
        self.looks += 1
        if self.failure:
            raise StoreError(self.failure)
        return super().names()


@pytest.fixture
def store(tmp_path: Path, save_tiny: SaveTiny) -> CountedStore:
    store = CountedStore(str(tmp_path))
    for _ in range(2):
        save_tiny(str(tmp_path), "pets")
    save_tiny(str(tmp_path), "ants")
    store.promote("pets", 1)
    return store


@pytest.mark.parametrize("reference", ["pets", "pets@2", "pets@latest", "pets@production", "ants", "ants@1"])
def test_a_reference_means_what_it_means_in_the_store(store: CountedStore, reference: str) -> None:
    assert StoreListing(lambda: store).resolve(reference) == store.resolve(reference)


@pytest.mark.parametrize("reference", ["cats", "pets@3", "pets@previous", "pets@", "", "@", "../pets", "pets@1@1", "pets@01"])
def test_unknown_references_are_refused_with_the_list(store: CountedStore, reference: str) -> None:
    with pytest.raises(UnknownModelError, match="Available: ants@1, pets@1, pets@2") as refused:
        StoreListing(lambda: store).resolve(reference)
    assert store.location not in str(refused.value)


def test_any_number_of_unknown_names_costs_one_look_a_second(store: CountedStore, save_tiny: SaveTiny) -> None:
    now_s = 0.0
    listing = StoreListing(lambda: store, lambda: now_s)
    for second in range(3):
        now_s = float(second)
        for number in range(50):
            with pytest.raises(UnknownModelError):
                listing.resolve(f"nothing{number}")
        assert store.looks == second + 1
    save_tiny(store.storage, "cats")
    now_s += 1
    assert listing.resolve("cats") == ("cats", 1)


def test_a_storage_that_is_away_is_asked_once_a_second_too(store: CountedStore) -> None:
    now_s = 0.0
    listing = StoreListing(lambda: store, lambda: now_s)
    store.failure = "the storage is away"
    for _ in range(50):
        with pytest.raises(StoreError, match="away"):
            listing.resolve("pets")
    assert store.looks == 1
    store.failure, now_s = "", 1.0
    assert listing.resolve("pets") == ("pets", 1)


def test_a_damaged_model_is_refused_without_a_look_at_the_store(store: CountedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveModels(ServeConfig(storage=store.storage), "cpu")
    weights = Path(store.storage, "models/ants/1/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError):
        live.load("ants")
    monkeypatch.setattr(ModelStore, "resolve", lambda *_: pytest.fail("looked into the store"))
    for _ in range(50):
        with pytest.raises(BundleError):
            live.check("ants")


def test_requests_for_unknown_models_do_not_wait_for_a_model_that_is_being_loaded(store: CountedStore) -> None:
    replica: Any = ClassifierReplica.__new__(ClassifierReplica)
    replica._models = LiveModels(ServeConfig(storage=store.storage), "cpu")
    replica._loader = ThreadPoolExecutor(1)
    loaded = threading.Event()
    replica._loader.submit(loaded.wait)
    try:
        answers = [asyncio.run(replica.status(f"nothing{number}")) for number in range(3)]
    finally:
        loaded.set()
    assert all(isinstance(answer, Status) and not answer.is_known for answer in answers)

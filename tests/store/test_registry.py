"""Names, versions and aliases: what readers see after saves, crashes, promotions and deletions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifar_ray.errors import BundleError, StoreError
from cifar_ray.store import Manifest, ModelStore

Weights = dict[str, torch.Tensor]


def test_nothing_is_created_by_looking(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path / "none"))
    assert store.names() == []
    with pytest.raises(StoreError, match=r"model pets not found .*store is empty; train a model"):
        store.load("pets")
    assert list(tmp_path.iterdir()) == []


def test_references_find_versions_aliases_and_the_newest(three: ModelStore) -> None:
    assert three.resolve("pets") == ("pets", 3)
    three.promote("pets", 1)
    three.promote("pets", 2)
    found = {wanted: three.resolve(f"pets{wanted}")[1] for wanted in ("", "@1", "@production", "@previous", "@latest")}
    assert found == {"": 2, "@1": 1, "@production": 2, "@previous": 1, "@latest": 3}
    assert (three.names(), three.versions("pets"), three.aliases("pets")) == (["pets"], [1, 2, 3], {"production": 2, "previous": 1})
    assert three.load("pets@1").version == 1


@pytest.mark.parametrize("selector", ["4", "0", "-1", "01", "1.0", "", "champion", "production", "1@2", "../1", "٣"])
def test_an_unknown_version_or_alias_is_refused_with_those_there_are(three: ModelStore, selector: str) -> None:
    with pytest.raises(StoreError, match=r"Available for pets: 1, 2, 3, latest"):
        three.load(f"pets@{selector}")


def test_an_unknown_name_is_refused_with_those_there_are(three: ModelStore) -> None:
    for ask in (three.load, three.manifest, three.check, three.versions, three.aliases, three.rollback, three.resolve_exact):
        with pytest.raises(StoreError, match=r"model birds not found .*Available: pets"):
            ask("birds")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "a\n", "a b", "x" * 101, "naïve", "-x"])
def test_a_name_that_could_leave_the_store_is_refused(store: ModelStore, manifest: Manifest, weights: Weights, name: str) -> None:
    actions: list[Callable[[], object]] = [
        lambda: store.save(name, manifest, weights),
        lambda: store.load(name),
        lambda: store.versions(name),
        lambda: store.promote(name, 1),
        lambda: store.rollback(name),
        lambda: store.delete(f"{name}@1", force=True),
    ]
    for action in actions:
        with pytest.raises(StoreError, match="is not a valid model name"):
            action()


def test_folders_that_are_not_models_are_not_seen(three: ModelStore, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for stray in ("pets/.staging-0", "pets/notes", "pets/7", "empty", "a b/1", ".trash/1"):
        (models / stray).mkdir(parents=True)
    (models / "pets/.staging-0/manifest.json").write_text("{}")
    (models / "pets/7/model.safetensors").write_text("half a model")
    (models / "a b/1/manifest.json").write_text("{}")
    (models / "file").write_text("")
    assert (three.names(), three.versions("pets")) == (["pets"], [1, 2, 3])


def test_promote_keeps_what_was_production_as_previous(three: ModelStore) -> None:
    assert three.promote("pets", 1) == {"production": 1}
    assert three.promote("pets", 3) == {"production": 3, "previous": 1}
    assert three.promote("pets", 3) == {"production": 3, "previous": 1}
    assert three.load("pets").version == 3


def test_rollback_exchanges_production_and_previous(three: ModelStore) -> None:
    three.promote("pets", 1)
    with pytest.raises(StoreError, match="no previous production version"):
        three.rollback("pets")
    three.promote("pets", 3)
    assert three.rollback("pets") == three.aliases("pets") == {"production": 1, "previous": 3}
    assert three.rollback("pets") == {"production": 3, "previous": 1}


def test_a_damaged_bundle_never_replaces_a_good_one(three: ModelStore, tmp_path: Path) -> None:
    three.promote("pets", 1)
    three.promote("pets", 2)
    for version in (1, 3):
        (tmp_path / f"models/pets/{version}/model.safetensors").write_bytes(b"torn")
    with pytest.raises(BundleError, match="pets@3"):
        three.promote("pets", 3)
    with pytest.raises(BundleError, match="pets@1"):
        three.rollback("pets")
    assert three.aliases("pets") == {"production": 2, "previous": 1}


def test_promote_refuses_a_version_that_is_not_there(three: ModelStore) -> None:
    with pytest.raises(StoreError, match="pets@9 not found"):
        three.promote("pets", 9)


def test_damaged_aliases_are_named(three: ModelStore, tmp_path: Path) -> None:
    for damage in ("{", '{"production": "one"}', '{"production": 0}', "[]"):
        (tmp_path / "models/pets/aliases.json").write_text(damage)
        with pytest.raises(StoreError, match=r"aliases\.json is damaged; delete this file"):
            three.load("pets")
        assert three.load("pets@2").version == 2


def test_production_that_points_nowhere_is_refused_not_replaced_by_the_newest(three: ModelStore, tmp_path: Path) -> None:
    three.promote("pets", 2)
    shutil.rmtree(tmp_path / "models/pets/2")
    with pytest.raises(StoreError, match=r"pets@production not found .*Available for pets: 1, 3, latest"):
        three.load("pets")


def test_a_deleted_version_is_gone_and_its_number_is_not_given_again(three: ModelStore, manifest: Manifest, weights: Weights) -> None:
    assert three.delete("pets@3") == ("pets", 3)
    assert three.delete("pets@1") == ("pets", 1)
    assert three.versions("pets") == [2]
    assert three.save("pets", manifest, weights).version == 4
    for version in (2, 4):
        three.delete(f"pets@{version}")
    assert three.names() == []


def test_delete_wants_a_version_and_refuses_what_an_alias_points_to(three: ModelStore) -> None:
    three.promote("pets", 1)
    three.promote("pets", 2)
    with pytest.raises(StoreError, match=r"pets: add a version, as in pets@3\. Available: 1, 2, 3"):
        three.delete("pets")
    for reference, alias in (("pets@2", "production"), ("pets@previous", "previous")):
        with pytest.raises(StoreError, match=f"has the alias {alias}; .*--force"):
            three.delete(reference)
    assert three.versions("pets") == [1, 2, 3]
    three.delete("pets@2", force=True)
    assert (three.versions("pets"), three.aliases("pets")) == ([1, 3], {"previous": 1})


def test_an_attachment_is_read_alone_and_checked(store: ModelStore, manifest: Manifest, weights: Weights, tmp_path: Path) -> None:
    saved = store.save("pets", manifest, weights, {"notes": b"n"})
    assert saved.attachments == {"notes": b"n"}
    assert (store.attachment("pets@1", "notes"), store.attachment("pets", "others")) == (b"n", None)
    (tmp_path / "models" / "pets" / "1" / "notes").write_bytes(b"m")
    with pytest.raises(BundleError, match=r"pets@1.*notes"):
        store.attachment("pets", "notes")


def test_a_crash_while_deleting_leaves_nothing_that_looks_like_a_model(three: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "models/pets/3/manifest.json").unlink()  # the first thing delete does
    assert three.versions("pets") == [1, 2]
    assert three.load("pets").version == 2

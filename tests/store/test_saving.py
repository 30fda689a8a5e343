"""A save lands whole or not at all: crashes, full disks, paths, URIs and object stores; many at once are in `tests/storage`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_ray.errors import StoreError
from cifar_ray.storage.objects import ObjectWriter
from cifar_ray.store import Manifest, ModelStore, load_model

Weights = dict[str, torch.Tensor]


def die_at(monkeypatch: pytest.MonkeyPatch, function: str, call: int) -> None:
    """The process dies as it calls `os.<function>` for the `call`-th time; nothing is cleaned up after it."""
    real, calls = getattr(os, function), iter(range(1, 100))

    def dying(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(os, function, dying)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)


# save calls: fsync of the weights, the manifest, the staging folder; rename; fsync of the model's folder
@pytest.mark.parametrize(("function", "call"), [("fsync", 1), ("fsync", 2), ("fsync", 3), ("rename", 1)])
def test_a_crash_while_saving_leaves_the_previous_version_and_nothing_that_looks_like_a_model(
    three: ModelStore, manifest: Manifest, weights: Weights, function: str, call: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, function, call)
        with pytest.raises(KeyboardInterrupt):
            three.save("pets", manifest, weights)
        patch.undo()
        die_at(patch, function, call)
        with pytest.raises(KeyboardInterrupt):
            three.save("birds", manifest, weights)
    assert (three.names(), three.versions("pets"), three.load("pets").version) == (["pets"], [1, 2, 3], 3)
    assert three.save("pets", manifest, weights).version == 4


def test_a_failed_save_cleans_up_and_says_where(
    three: ModelStore, manifest: Manifest, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("CIFAR_RAY_STORAGE_PATIENCE_S", "0")
    three = ModelStore(str(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write to .*pets.*No space left"):
        three.save("pets", manifest, weights)
    with pytest.raises(StoreError, match=r"cannot write .*aliases.json.*No space left"):
        three.promote("pets", 1)
    assert sorted(path.name for path in (tmp_path / "models/pets").iterdir()) == [".lock", "1", "2", "3"]


@pytest.mark.parametrize(("function", "call"), [("fsync", 1), ("replace", 1)])
def test_a_crash_while_promoting_leaves_the_old_aliases(three: ModelStore, function: str, call: int) -> None:
    three.promote("pets", 1)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, function, call)
        with pytest.raises(KeyboardInterrupt):
            three.promote("pets", 2)
    assert three.aliases("pets") == {"production": 1}
    assert three.promote("pets", 3) == three.aliases("pets") == {"production": 3, "previous": 1}


def test_a_taken_number_is_passed_over(three: ModelStore, manifest: Manifest, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loser of a race sees: the number it chose is there when it renames."""
    monkeypatch.setattr(type(three._files), "_next_number", lambda *_: 1)
    assert three.save("pets", manifest, weights).version == 4
    assert three.versions("pets") == [1, 2, 3, 4]


def test_a_path_and_a_file_uri_are_the_same_store(tmp_path: Path, manifest: Manifest, weights: Weights) -> None:
    root = tmp_path / "with space"
    ModelStore(str(root)).save("pets", manifest, weights)
    store = ModelStore(f"{root.as_uri()}/")
    assert store.save("pets", manifest, weights).version == 2
    assert ModelStore(str(root)).versions("pets") == [1, 2]


def test_a_relative_path_is_fixed_when_given(tmp_path: Path, manifest: Manifest, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ModelStore("here")
    monkeypatch.chdir("/")
    store.save("pets", manifest, weights)
    assert (tmp_path / "here/models/pets/1/manifest.json").is_file()


@pytest.mark.parametrize("storage", ["nowhere://x", "file://host/x"])
def test_a_storage_that_cannot_be_used_is_refused(storage: str) -> None:
    with pytest.raises(StoreError, match=f"cannot use {storage} as storage"):
        ModelStore(storage)


def test_a_storage_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(StoreError, match="cannot list"):
        ModelStore(str(tmp_path)).names()


def test_an_object_store_needs_no_rename_and_commits_by_the_manifest(
    s3: Any, manifest: Manifest, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an object store has no rename")

    for function in ("rename", "replace", "fsync"):
        monkeypatch.setattr(os, function, never)
    store = ModelStore(s3.uri("some/storage"))
    assert store.names() == []
    for _ in range(3):
        store.save("pets", manifest, weights, {"notes": b"n"})
    store.promote("pets", 1)
    store.promote("pets", 2)
    assert torch.equal(store.load("pets").weights["conv.weight"], weights["conv.weight"])
    assert (store.attachment("pets@3", "notes"), store.check("pets@3").metrics) == (b"n", manifest.metrics)
    assert store.rollback("pets") == {"production": 1, "previous": 2}
    store.delete("pets@3")
    assert (store.names(), store.versions("pets")) == (["pets"], [1, 2])
    assert load_model(s3.uri("some/storage/models/pets/2"), "/nowhere").reference == "pets@2"

    real = ObjectWriter.put

    def without_manifest(files: Any, path: str, data: bytes) -> None:
        if path.endswith("manifest.json"):
            raise KeyboardInterrupt
        real(files, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectWriter, "put", without_manifest)
        with pytest.raises(KeyboardInterrupt):
            store.save("pets", manifest, weights)
    assert store.versions("pets") == [1, 2]
    assert store.save("pets", manifest, weights).version == 5
    store.delete("pets@5")
    assert store.save("pets", manifest, weights).version == 6


def test_a_bucket_that_is_not_there_is_one_line(s3: Any, manifest: Manifest, weights: Weights) -> None:
    store = ModelStore(s3.uri("storage").replace(s3.bucket, "nobody-has-it"))
    assert store.names() == []
    with pytest.raises(StoreError, match=r"cannot write .*NO_SUCH_BUCKET.* bucket does not exist"):
        store.save("pets", manifest, weights)

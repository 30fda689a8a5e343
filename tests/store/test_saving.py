"""A save lands whole or not at all: crashes, full disks, two savers at once, paths, URIs and object stores."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_ray.errors import StoreError
from cifar_ray.store import Manifest, ModelStore

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

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write to .*pets.*No space left"):
        three.save("pets", manifest, weights)
    with pytest.raises(StoreError, match=r"cannot write .*aliases.json.*No space left"):
        three.promote("pets", 1)
    assert sorted(path.name for path in (tmp_path / "models/pets").iterdir()) == ["1", "2", "3"]


@pytest.mark.parametrize(("function", "call"), [("fsync", 1), ("replace", 1)])
def test_a_crash_while_promoting_leaves_the_old_aliases(three: ModelStore, function: str, call: int) -> None:
    three.promote("pets", 1)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, function, call)
        with pytest.raises(KeyboardInterrupt):
            three.promote("pets", 2)
    assert three.aliases("pets") == {"production": 1}
    assert three.promote("pets", 3) == three.aliases("pets") == {"production": 3, "previous": 1}


def save_five(storage: str, manifest: Manifest, start: Any, value: int) -> None:
    store = ModelStore(storage)
    start.wait(60)
    for _ in range(5):
        store.save("pets", manifest, {"w": torch.full((50_000,), value)})


def test_processes_that_save_at_once_all_land(tmp_path: Path, manifest: Manifest) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    other = context.Process(target=save_five, args=(str(tmp_path), manifest, start, 1))
    other.start()
    try:
        save_five(str(tmp_path), manifest, start, 0)
    finally:
        other.join(60)
    assert other.exitcode == 0
    store = ModelStore(str(tmp_path))
    assert store.versions("pets") == list(range(1, 11))
    values = [int(store.load(f"pets@{version}").weights["w"].unique()) for version in range(1, 11)]
    assert sorted(values) == [0] * 5 + [1] * 5


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
    manifest: Manifest, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an object store has no rename")

    for function in ("rename", "replace", "fsync"):
        monkeypatch.setattr(os, function, never)
    store = ModelStore("mock:///bucket/storage")
    assert store.names() == []
    for _ in range(3):
        store.save("pets", manifest, weights)
    store.promote("pets", 1)
    store.promote("pets", 2)
    assert torch.equal(store.load("pets").weights["conv.weight"], weights["conv.weight"])
    assert store.rollback("pets") == {"production": 1, "previous": 2}
    store.delete("pets@3")
    assert (store.names(), store.versions("pets")) == (["pets"], [1, 2])

    real = type(store._files)._put

    def without_manifest(files: Any, path: str, data: bytes) -> None:
        if path.endswith("manifest.json"):
            raise KeyboardInterrupt
        real(files, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(type(store._files), "_put", without_manifest)
        with pytest.raises(KeyboardInterrupt):
            store.save("pets", manifest, weights)
    assert store.versions("pets") == [1, 2]
    assert store.save("pets", manifest, weights).version == 5

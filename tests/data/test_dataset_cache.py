from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cifar_ray.config import TrainConfig
from cifar_ray.data import DatasetSplits, ImageDataset, load_splits
from cifar_ray.data import dataset_cache as cache
from cifar_ray.data.reading.local_cache import cache_folder
from cifar_ray.errors import DataError

# Loads a folder in a process of its own. With "hold" it stops in the middle of decoding until a line arrives.
LOADER = """
import logging, sys
from cifar_ray.config import TrainConfig
from cifar_ray.data import folder, load_splits
logging.basicConfig(level=logging.INFO)
decode, held = folder.decode_square, sys.argv[3] != "hold"
def spy(path, *how, **more):
    global held
    print(path, file=open(sys.argv[2], "a"), flush=True)
    if not held:
        held = True
        print("decoding", flush=True)
        sys.stdin.readline()
    return decode(path, *how, **more)
folder.decode_square = spy
print(load_splits(TrainConfig(dataset="folder", data_dir=sys.argv[1])).fingerprint, flush=True)
"""


def loader(root: Path, log: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOADER, str(root), str(log), mode]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def build_counting(calls: list[int]) -> DatasetSplits:
    def build(allocate: cache.Allocate) -> DatasetSplits:
        calls.append(1)
        images = allocate("train", 6, 4)
        images[:4] = np.arange(4)[:, None, None, None]
        return DatasetSplits("four", ImageDataset(images[:4], np.array([0, 1, 0, 1]), ("a", "b")), None, None)

    return cache.load_or_build("four", build)


def test_an_entry_is_built_once_and_then_read() -> None:
    calls: list[int] = []
    built, read = build_counting(calls), build_counting(calls)
    assert len(calls) == 1
    assert built.fingerprint == read.fingerprint
    assert (read.name, len(read.train), read.val, read.test) == ("four", 4, None, None)
    assert read.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_images_are_mapped_and_writing_to_them_stays_private() -> None:
    mapped = build_counting([]).train.images
    assert not mapped.flags.owndata
    assert mapped.flags.writeable
    mapped[:] = 9
    assert build_counting([]).train.images.max() == 3


@pytest.mark.parametrize("file", ["entry.json", "train_images.npy", "train_labels.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "nonsense"])
def test_a_damaged_entry_is_built_again(file: str, damage: str, cache_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    whole = build_counting(calls).fingerprint
    path = cache_root / "four" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"truncated": content[:-20], "empty": b"", "nonsense": b"[1]" * 99}[damage])
    assert build_counting(calls).fingerprint == whole
    assert build_counting(calls).fingerprint == whole
    assert len(calls) == 2
    assert "is damaged, building it again" in caplog.text


def test_a_build_that_fails_leaves_nothing(cache_root: Path) -> None:
    def build(allocate: cache.Allocate) -> DatasetSplits:
        allocate("train", 2, 4)
        raise DataError("no use")

    with pytest.raises(DataError, match="no use"):
        cache.load_or_build("bad", build)
    assert [path.name for path in cache_root.iterdir() if path.is_dir()] == []


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, cache_root: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 100))
    with pytest.raises(DataError, match=rf"{cache_root}: 288 bytes needed, 100 free; free some space, or set CIFAR_RAY_CACHE"):
        build_counting([])


def test_a_cache_folder_that_cannot_be_made_is_one_line(cache_root: Path) -> None:
    cache_root.write_text("a file")
    with pytest.raises(DataError, match=rf"{cache_root}.*set CIFAR_RAY_CACHE"):
        build_counting([])


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CIFAR_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cifar_ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/cifar_ray").expanduser()


def test_two_processes_decode_once(tmp_path: Path, make_pictures: Callable[..., list[Path]]) -> None:
    for name in "ab":
        make_pictures(tmp_path / "pets" / name, 10)
    first = loader(tmp_path / "pets", tmp_path / "log", "hold")
    assert first.stdout
    assert first.stdout.readline() == "decoding\n"
    second = loader(tmp_path / "pets", tmp_path / "log", "go")
    assert second.stderr
    assert "waiting for another process" in second.stderr.readline()
    results = [process.communicate("\n", timeout=60)[0] for process in (first, second)]
    assert results[0] == results[1] != ""
    assert len((tmp_path / "log").read_text().splitlines()) == 20


def test_a_killed_build_leaves_nothing_that_looks_valid(tmp_path: Path, cache_root: Path, make_pictures: Callable[..., list[Path]]) -> None:
    for name in "ab":
        make_pictures(tmp_path / "pets" / name, 10)
    process = loader(tmp_path / "pets", tmp_path / "log", "hold")
    assert process.stdout
    assert process.stdout.readline() == "decoding\n"
    process.kill()
    process.communicate(timeout=60)
    assert [path.suffix for path in cache_root.iterdir() if path.is_dir()] == [".partial"]
    splits = load_splits(TrainConfig(dataset="folder", data_dir=str(tmp_path / "pets"), val_fraction=0, test_fraction=0))
    assert (splits.train.images.reshape(20, -1).max(axis=1) > 0).all()
    assert [path.suffix for path in cache_root.iterdir() if path.is_dir()] == [""]
    assert not os.path.lexists(cache_root / "pets.partial")

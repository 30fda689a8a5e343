"""Features are computed once for each picture and network; a cache that cannot be read or written costs time, not the run."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cifar_ray.inference.engines.engine import TorchEngine
from cifar_ray.models import create_model
from cifar_ray.training.probe import extraction as features
from cifar_ray.training.probe import feature_cache
from cifar_ray.training.probe.extraction import Backbone, extract
from cifar_ray.training.probe.feature_cache import FeatureCache, digest, make_room

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Pictures:
    """Images in memory."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return self.images[rows]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIFAR_RAY_CACHE", str(tmp_path))
    monkeypatch.setattr(features, "choose", lambda reference, _, **__: (reference, "as configured"))
    return tmp_path / "features"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of pictures that ran through the network."""
    counts: list[int] = []
    plain = TorchEngine.logits

    def spy(engine: TorchEngine, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        counts.append(len(images))
        return plain(engine, images)

    monkeypatch.setattr(TorchEngine, "logits", spy)
    return counts


def images(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def backbone(seed: int = 0, size: int = 16, **changes: object) -> Backbone:
    torch.manual_seed(seed)
    return Backbone.of(create_model("small_cnn", 3, size), "small_cnn", size, MEAN, STD, **changes)


def run(shown: npt.NDArray[np.uint8], views: int = 1, **changes: int) -> npt.NDArray[np.float32]:
    return extract(backbone(**changes), views, {"train": Pictures(shown)})["train"]


def test_a_second_run_computes_nothing_and_an_added_picture_is_one_picture(computed: list[int]) -> None:
    first = run(images(20))
    assert sum(computed) == 20
    again = run(images(20))
    assert sum(computed) == 20
    np.testing.assert_array_equal(first, again)
    added = images(21)[::-1].copy()
    np.testing.assert_array_equal(run(added)[1:], first[::-1])
    assert sum(computed) == 21


def test_features_are_those_of_the_network_without_its_head_and_of_views_their_mean(computed: list[int]) -> None:
    torch.manual_seed(0)
    network = create_model("small_cnn", 3, 16, views=3).eval()
    seen: list[torch.Tensor] = []
    network.network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network((torch.from_numpy(images(4)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(run(images(4), views=3), torch.stack(seen).mean(0), rtol=0.1, atol=0.02)
    assert sum(computed) == 12


def test_other_weights_sizes_views_normalisations_and_number_formats_have_other_keys() -> None:
    other_mean = Backbone.of(create_model("small_cnn", 3, 16), "small_cnn", 16, (0.4, 0.5, 0.6), STD)
    keys = [
        backbone().key(0, "fp32"),
        backbone().key(0, "bf16"),
        backbone().key(1, "fp32"),
        backbone(mirror=False).key(1, "fp32"),
        backbone(seed=1).key(0, "fp32"),
        backbone(size=32).key(0, "fp32"),
        other_mean.key(0, "fp32"),
    ]
    assert len(set(keys)) == len(keys)
    assert backbone().key(0, "fp32") == keys[0]


def test_the_head_does_not_change_the_key() -> None:
    """Its number of classes is that of the data set."""
    keys = set()
    for classes in (3, 5):
        network = create_model("small_cnn", classes, 16)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.1)
        keys.add(Backbone.of(network, "small_cnn", 16, MEAN, STD).key(0, "fp32"))
    assert len(keys) == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "short", "pickle", "float64"])
def test_a_damaged_file_is_ignored_with_one_warning(
    folder: Path, computed: list[int], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = run(images(20))
    (file,) = folder.glob("*/*.npy")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other":
        file.write_bytes(b"PK\x03\x04" + bytes(100))
    elif damage == "short":
        file.with_suffix(".digests").write_bytes(bytes(7))
    elif damage == "pickle":
        np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    else:
        np.save(file, np.zeros((20, 4)))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(run(images(20)), first)
    (record,) = caplog.records
    assert "which is damaged" in record.message
    assert "\n" not in record.message
    assert sum(computed) == 40


def test_a_half_written_file_is_not_read_and_goes_later(folder: Path) -> None:
    cache = FeatureCache("net")
    cache.add([digest(one) for one in images(2)], np.ones((2, 4), np.float32))
    half = folder / "net" / "dead.partial"
    half.write_bytes(b"half")
    half.with_suffix(".digests").write_bytes(bytes(32))
    assert FeatureCache("net").find(digest(images(1)[0])) is not None
    make_room(10**9)
    assert half.exists(), "its process may still be writing"
    os.utime(half, (0, 0))
    make_room(10**9)
    assert sorted(path.suffix for path in (folder / "net").iterdir()) == [".digests", ".npy"]


@pytest.mark.parametrize("failure", ["writing", "no space", "no folder"])
def test_a_full_disk_costs_the_cache_only(
    folder: Path, computed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if failure == "writing":
        monkeypatch.setattr(feature_cache.np, "save", full)
    elif failure == "no space":
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage._replace(free=100))
    else:
        folder.parent.mkdir(exist_ok=True)
        folder.write_text("a file where the folder should be")
    found = run(images(20))
    assert found.shape[0] == 20
    assert [record.message.startswith("feature cache: cannot write") for record in caplog.records] == [True]
    monkeypatch.undo()
    assert not list(folder.glob("*/*")), "nothing is left behind"


def test_a_read_only_cache_is_read(
    folder: Path, computed: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(images(20))

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(feature_cache.os, "utime", refuse)
    np.testing.assert_array_equal(run(images(20)), first)
    assert sum(computed) == 20
    assert not caplog.records


def test_the_least_recently_used_features_go_first(folder: Path) -> None:
    for number, key in enumerate(("old", "used", "new")):
        FeatureCache(key).add([digest(one) for one in images(10)], np.ones((10, 100), np.float32))
        (file,) = (folder / key).glob("*.npy")
        os.utime(file, (number, number))
    FeatureCache("old")  # used again
    make_room(2 * 4200)
    assert sorted(path.parent.name for path in folder.glob("*/*.npy")) == ["new", "old"]
    assert sorted(path.parent.name for path in folder.glob("*/*.digests")) == ["new", "old"]
    make_room(0)
    assert not list(folder.glob("*/*"))


def test_names_without_features_of_a_killed_process_go_after_an_hour(folder: Path) -> None:
    (folder / "net").mkdir(parents=True)
    for name, age_s in (("old", 4000), ("new", 0)):
        left = folder / "net" / f"{name}.digests"
        left.write_bytes(b"x")
        os.utime(left, (time.time() - age_s,) * 2)
    make_room(10**9)
    assert [path.name for path in (folder / "net").iterdir()] == ["new.digests"]


WRITER = """
import sys, numpy as np
from cifar_ray.training.probe.feature_cache import FeatureCache, digest
sys.stdin.readline()
for number in range(20):
    block = np.full((5, 2, 2, 3), number, np.uint8)
    block[:, 0, 0, 0] = np.arange(5)
    FeatureCache("net").add([digest(one) for one in block], np.full((5, 8), number, np.float32))
"""


def test_two_processes_may_write_at_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    command = [sys.executable, "-c", WRITER]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        FeatureCache("net")
    for writer in writers:
        assert writer.communicate()[1] == ""
    assert not caplog.records
    cache = FeatureCache("net")
    assert len(list((folder / "net").glob("*.npy"))) == 40
    for number in range(20):
        picture = np.full((2, 2, 3), number, np.uint8)
        picture[0, 0, 0] = 3
        np.testing.assert_array_equal(cache.find(digest(picture)), np.full(8, number, np.float32))

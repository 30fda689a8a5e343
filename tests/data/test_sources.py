from __future__ import annotations

import contextlib
import hashlib
import http.server
import pickle
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits, sources
from cifar_ray.data.decode import fit
from cifar_ray.errors import DataError

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """CIFAR's own file layout with few images; torchvision's checksums are set to these files'."""
    from torchvision import datasets

    source, names = {
        "cifar10": (datasets.CIFAR10, CIFAR10_NAMES),
        "cifar100": (datasets.CIFAR100, [f"class{index:02}" for index in range(100)]),
    }[name]
    generator = np.random.default_rng(0)
    folder = root / source.base_folder
    folder.mkdir(parents=True)

    def write(file: str, content: dict[str, Any]) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        return [file, hashlib.md5((folder / file).read_bytes(), usedforsecurity=False).hexdigest()]

    def batch(file: str, per_class: int) -> list[str]:
        labels = np.repeat(np.arange(len(names)), per_class).tolist()
        key = "labels" if name == "cifar10" else "fine_labels"
        return write(file, {"data": generator.integers(0, 256, (len(labels), 3072), np.uint8), key: labels})

    train, test = [batch(file, 2) for file, _ in source.train_list], [batch(file, 1) for file, _ in source.test_list]
    _, md5 = write(source.meta["filename"], {source.meta["key"]: names})
    monkeypatch.setattr(source, "train_list", train)
    monkeypatch.setattr(source, "test_list", test)
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5})
    monkeypatch.setattr(source, "url", "http://127.0.0.1:9/no-network.tar.gz")
    return {"source": source, "folder": folder, "first": pickle.loads((folder / train[0][0]).read_bytes())["data"][0]}  # noqa: S301  (its own file)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"dataset": "cifar10", "val_fraction": 0.0, **settings})


def test_cifar10_comes_through_torchvision_in_its_own_class_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_cifar(tmp_path, "cifar10", monkeypatch)
    splits = load_splits(config(data_dir=str(tmp_path)))
    assert splits.name == "cifar10"
    assert splits.train.class_names == tuple(CIFAR10_NAMES)
    assert [(name, part.class_counts().tolist()) for name, part in splits] == [("train", [10] * 10), ("test", [1] * 10)]
    assert np.array_equal(splits.train.images[0], files["first"].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar100_has_its_fine_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, "cifar100", monkeypatch)
    splits = load_splits(config(dataset="cifar100", data_dir=str(tmp_path), val_fraction=0.5))
    assert splits.train.num_classes == 100
    assert [(name, len(part)) for name, part in splits] == [("train", 100), ("val", 100), ("test", 100)]


def test_cifar_at_another_size_is_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_cifar(tmp_path, "cifar10", monkeypatch)
    splits = load_splits(config(data_dir=str(tmp_path), image_size=48))
    first = Image.fromarray(files["first"].reshape(3, 32, 32).transpose(1, 2, 0).copy())
    assert np.array_equal(splits.train.images[0], fit(first, 48, "pad"))


def test_cifar_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, "cifar10", monkeypatch)
    first = load_splits(config(data_dir=str(tmp_path)))
    monkeypatch.setattr(sources, "_open_cifar", None)
    assert load_splits(config(data_dir=str(tmp_path))).fingerprint == first.fingerprint


def test_the_archive_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_cifar(tmp_path / "made", "cifar10", monkeypatch)
    source, archive = files["source"], tmp_path / "here" / files["source"].filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(files["folder"], arcname=source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest())
    assert len(load_splits(config(data_dir=str(archive.parent))).train) == 100


@pytest.mark.parametrize("shared", [False, True], ids=["each for itself", "shared folder"])
def test_a_node_s_workers_download_once_and_a_shared_folder_is_filled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    files = write_cifar(tmp_path / "made", "cifar10", monkeypatch)
    source, served = files["source"], tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / source.filename, "w:gz") as tar:
        tar.add(files["folder"], arcname=source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5((served / source.filename).read_bytes(), usedforsecurity=False).hexdigest())
    asked: list[str] = []

    class Archive(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

        def copyfile(self, *files: Any) -> None:
            with contextlib.suppress(BrokenPipeError):  # torchvision asks once before, for where it is sent on to, and hangs up
                super().copyfile(*files)

    settings = config(data_dir=str(tmp_path / "nfs")) if shared else config()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Archive, directory=served)) as server, ThreadPoolExecutor(4) as workers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(source, "url", f"http://127.0.0.1:{server.server_port}/{source.filename}")
        for node in ("one", "two"):
            monkeypatch.setenv("CIFAR_RAY_CACHE", str(tmp_path / node))
            # each opens the lock's file anew, so to the kernel they are as four processes
            assert len({splits.fingerprint for splits in workers.map(load_splits, [settings] * 4)}) == 1
        server.shutdown()
    assert len(asked) / 2 == (1 if shared else 2)


def test_the_unpacked_folder_itself_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_cifar(tmp_path, "cifar10", monkeypatch)
    assert len(load_splits(config(data_dir=str(files["folder"]))).train) == 100


def refused_in_one_line(settings: TrainConfig) -> str:
    with pytest.raises(DataError) as refused:
        load_splits(settings)
    message = str(refused.value)
    assert "\n" not in message
    assert "Put cifar-10-python.tar.gz into" in message
    assert "--dataset digits" in message
    return message


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "elsewhere", "cifar10", monkeypatch)
    message = refused_in_one_line(config(data_dir=str(tmp_path / "empty")))
    assert f"from {tmp_path / 'empty'} or download it from http://127.0.0.1:9/no-network.tar.gz" in message


def test_damaged_files_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_cifar(tmp_path, "cifar10", monkeypatch)
    (files["folder"] / "data_batch_3").write_bytes(b"cos\nsystem\n")
    refused_in_one_line(config(data_dir=str(tmp_path)))


def test_a_server_that_never_answers_does_not_hang_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_cifar(tmp_path / "elsewhere", "cifar10", monkeypatch)
    monkeypatch.setattr(sources, "_NETWORK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(files["source"], "url", f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz")
        start_s = time.perf_counter()
        assert "timed out" in refused_in_one_line(config(data_dir=str(tmp_path / "empty")))
    assert time.perf_counter() - start_s < 10
    assert socket.getdefaulttimeout() is None


def test_digits_are_scikit_learns_in_rgb() -> None:
    from sklearn.datasets import load_digits

    splits = load_splits(TrainConfig(dataset="digits", image_size=8, val_fraction=0, test_fraction=0))
    assert splits.name == "digits"
    assert splits.train.class_names == tuple("0123456789")
    assert splits.train.images.shape == (1797, 8, 8, 3)
    expected = np.round(load_digits().images * 255 / 16)
    assert all(np.array_equal(splits.train.images[..., channel], expected) for channel in range(3))


def test_digits_are_split_by_default_and_alike_each_time() -> None:
    first, again = (load_splits(TrainConfig(dataset="digits")) for _ in range(2))
    assert [name for name, _ in first] == ["train", "val", "test"]
    assert first.train.image_size_px == 32
    assert sum(len(part) for _, part in first) == 1797
    assert first.fingerprint == again.fingerprint

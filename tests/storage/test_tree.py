"""What a tree of files promises, on a path and on a server that speaks S3 alike."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import threading
from typing import Any

import pytest
from pyarrow.fs import FileSelector

from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree, split_location
from cifar_ray.storage.objects import CLAIMS, ObjectWriter


@pytest.fixture
def tree(storage: str) -> FileTree:
    return FileTree(storage, "root")


def files_below(tree: FileTree) -> list[str]:
    entries = tree.file_system.get_file_info(FileSelector(tree.path(), recursive=True, allow_not_found=True))
    return sorted(entry.path.removeprefix(f"{tree.path()}/") for entry in entries if entry.is_file)


def test_looking_finds_nothing_and_makes_nothing(tree: FileTree) -> None:
    assert (tree.folders(), tree.numbers("pets"), tree.read("pets/a"), tree.have_files(["pets", "a"])) == ([], [], None, [False, False])
    assert files_below(tree) == []


@pytest.mark.parametrize("size", [0, 1, 6 << 20], ids=["empty", "a byte", "in several parts"])
def test_what_is_written_is_read(tree: FileTree, size: int) -> None:
    data = os.urandom(size)
    tree.replace("deep/er/file", data)
    with tree.writing("deep/er/other") as file:
        file.write(data[:100])
        file.write(data[100:])
    assert tree.read("deep/er/file") == tree.read("deep/er/other") == data
    assert tree.have_files(["deep/er/file", "deep", "deep/er/none", "deep/er/other"]) == [True, False, False, True]
    assert files_below(tree) == ["deep/er/file", "deep/er/other"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, StoreError])
def test_a_write_that_is_interrupted_leaves_the_old_content(tree: FileTree, interruption: type[BaseException]) -> None:
    tree.replace("file", b"old")

    def interrupted() -> None:
        with tree.writing("file") as file:
            file.write(b"half of the new")
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert (tree.read("file"), files_below(tree)) == (b"old", ["file"])


def test_names_that_urls_would_quote_are_kept(tree: FileTree) -> None:
    for name in ("with space", "a+b", "100%", "naïve", "a=b&c#d"):
        tree.replace(f"{name}/file", name.encode())
        assert tree.read(f"{name}/file") == name.encode()
    assert tree.folders() == sorted(["with space", "a+b", "100%", "naïve", "a=b&c#d"])


def test_numbers_go_up_and_are_never_given_twice(tree: FileTree) -> None:
    files = {"weights": b"w", "manifest": b"m"}
    assert [tree.add_numbered("pets", files) for _ in range(3)] == [1, 2, 3]
    tree.clear_folder("pets/3", first="manifest")
    tree.clear_folder("pets/1", first="manifest")
    assert tree.add_numbered("pets", files) == 4
    assert tree.have_files([f"pets/{number}/manifest" for number in (1, 2, 3, 4)]) == [False, True, False, True]
    tree.replace("pets/9/manifest", b"copied here by hand")
    assert tree.add_numbered("pets", files) == 10
    assert tree.add_numbered("birds", files) == 1
    assert tree.folders() == ["birds", "pets"]


def test_a_folder_is_cleared_again_without_complaint(tree: FileTree) -> None:
    tree.add_numbered("pets", {"weights": b"w", "manifest": b"m"})
    for _ in range(2):
        tree.clear_folder("pets/1", first="manifest")
    assert tree.have_files(["pets/1/weights", "pets/1/manifest"]) == [False, False]


def test_all_is_gone_after_remove(tree: FileTree, storage: str) -> None:
    tree.replace("a/b", b"")
    FileTree(storage, "beside").replace("file", b"stays")
    for _ in range(2):
        tree.remove()
    assert files_below(tree) == []
    assert FileTree(storage, "beside").read("file") == b"stays"


def test_another_process_gets_the_same_tree(storage: str) -> None:
    """Ray hands the file system to its workers."""
    tree = FileTree(storage, "root")
    tree.replace("file", b"here")
    with pickle.loads(pickle.dumps(tree.file_system)).open_input_stream(tree.path("file")) as stream:  # noqa: S301
        assert stream.readall() == b"here"


def test_a_file_is_found_from_its_location(storage: str) -> None:
    base, mark, query = storage.partition("?")
    tree, name = FileTree.of_file(f"{base}/folder/model.onnx{mark}{query}")
    tree.replace(name, b"onnx")
    assert (name, FileTree(storage, "folder").read("model.onnx")) == ("model.onnx", b"onnx")


@pytest.mark.parametrize(
    ("location", "parts"),
    [
        ("/a/b", ("/a", "b")),
        ("/b", ("/", "b")),
        ("/a/b?c", ("/a", "b?c")),
        ("s3://k/a/b?region=x&scheme=http", ("s3://k/a?region=x&scheme=http", "b")),
        ("s3://k/b", ("s3://k", "b")),
    ],
)
def test_a_location_splits_before_its_query(location: str, parts: tuple[str, str]) -> None:
    assert split_location(location) == parts


def add(storage: str, start: Any, writer: int, count: int) -> None:
    tree = FileTree(storage, "root")
    start.wait(60)
    for _ in range(count):
        tree.add_numbered("pets", {"weights": bytes([writer]) * 1000, "manifest": bytes([writer])})


def run_at_once(workers: list[Any]) -> None:
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive()


@pytest.mark.parametrize("kind", [threading, multiprocessing.get_context("spawn")], ids=["threads", "processes"])
def test_all_who_write_at_once_land_under_numbers_of_their_own(storage: str, kind: Any) -> None:
    start, make, writers = (kind.Barrier(8), kind.Thread, 8) if kind is threading else (kind.Barrier(2), kind.Process, 2)
    count = 4
    run_at_once([make(target=add, args=(storage, start, writer, count)) for writer in range(writers)])
    tree = FileTree(storage, "root")
    numbers = tree.numbers("pets")
    found = [(tree.read(f"pets/{number}/manifest"), tree.read(f"pets/{number}/weights")) for number in numbers]
    assert all(manifest and weights == manifest * 1000 for manifest, weights in found)
    assert sorted(manifest[0] for manifest, _ in found if manifest) == sorted(list(range(writers)) * count)
    assert numbers[-1] == len(numbers)  # nobody died, so no number is missing


def test_a_number_of_a_writer_that_died_is_passed_over(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = FileTree(s3.uri("storage"), "root")
    tree.add_numbered("pets", {"manifest": b""})
    tree.replace(f"pets/{CLAIMS}/2/00000000000000000001-of-the-dead", b"")
    assert tree.add_numbered("pets", {"manifest": b""}) == 3
    # one that died as both looked, with a claim later than ours: it may be alive, so it is waited for a while
    monkeypatch.setattr("cifar_ray.storage.objects._CLAIM_TIMEOUT_S", 0.3)
    monkeypatch.setattr(FileTree, "_next_number", lambda *_: 4)
    tree.replace(f"pets/{CLAIMS}/4/99999999999999999999-of-the-dead", b"")
    assert tree.add_numbered("pets", {"manifest": b""}) == 5


def test_no_two_win_a_number_however_their_steps_mix(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims, withdrawals and listings of many, with clocks that go wrong, and one number wanted by all."""
    tree = FileTree(s3.uri("storage"), "root")
    writer = tree._objects
    assert isinstance(writer, ObjectWriter)
    monkeypatch.setattr("cifar_ray.storage.objects._CLAIM_TIMEOUT_S", 0.2)
    monkeypatch.setattr("cifar_ray.storage.objects.time.time_ns", lambda: random.randrange(10))  # noqa: S311
    won: list[int] = []
    start = threading.Barrier(6)

    def claim() -> None:
        start.wait(60)
        for _ in range(2):
            won.append(writer.claim("pets", 1))

    run_at_once([threading.Thread(target=claim) for _ in range(6)])
    assert len(won) == len(set(won)) == 12

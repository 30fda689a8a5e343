"""Changes of one file by several processes: none is lost, on a path and on a server that speaks S3 alike."""

from __future__ import annotations

import errno
import multiprocessing
import threading
from typing import Any

import pytest

from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree, conditional_puts
from cifar_ray.storage.conditional_puts import ConditionalPuts, NoConditionalPutsError


def one_more(content: bytes | None) -> bytes:
    return str(int(content or b"0") + 1).encode()


def count_up(storage: str, start: Any, times: int) -> None:
    tree = FileTree(storage, "root")
    start.wait(60)
    for _ in range(times):
        tree.update("counts/one", one_more)


@pytest.mark.parametrize("kind", [threading, multiprocessing.get_context("spawn")], ids=["threads", "processes"])
def test_no_change_of_two_who_change_at_once_is_lost(storage: str, kind: Any) -> None:
    start, make = kind.Barrier(2), kind.Thread if kind is threading else kind.Process
    workers = [make(target=count_up, args=(storage, start, 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert FileTree(storage, "root").read("counts/one") == b"40"


def test_a_change_that_is_refused_leaves_the_content(storage: str) -> None:
    tree = FileTree(storage, "root")
    tree.replace("file", b"old")

    def refuse(content: bytes | None) -> bytes:
        raise StoreError(f"refused: {content!r}")

    with pytest.raises(StoreError, match="refused: b'old'"):
        tree.update("file", refuse)
    assert tree.read("file") == b"old"
    assert tree.update("file", one_more_letter) == tree.read("file") == b"old!"


def one_more_letter(content: bytes | None) -> bytes:
    return (content or b"") + b"!"


def test_a_change_waits_for_the_lock_and_then_says_who_holds_it(tmp_path: Any) -> None:
    FileTree(str(tmp_path), "").replace("pets/file", b"")
    impatient = FileTree(str(tmp_path), "", timeout_s=0.1)

    def change_meanwhile(content: bytes | None) -> bytes:
        with pytest.raises(StoreError, match=r"another process has held .*pets/\.lock for 0\.1 s; try again, or stop that process"):
            impatient.update("pets/file", one_more_letter)
        return b"first"

    assert FileTree(str(tmp_path), "").update("pets/file", change_meanwhile) == b"first"
    assert impatient.update("pets/file", one_more_letter) == b"first!"


def test_a_change_whose_answer_got_lost_is_made_once(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put = ConditionalPuts._put
    answers = iter([True])

    def lose_the_first_answer(*arguments: Any) -> bool:
        is_put = put(*arguments)
        if next(answers, False):
            raise OSError(errno.ECONNRESET, "connection reset")
        return is_put

    monkeypatch.setattr(ConditionalPuts, "_put", lose_the_first_answer)
    tree = FileTree(s3.uri("storage"), "root")
    assert tree.update("file", one_more_letter) == tree.read("file") == b"!"


@pytest.mark.parametrize("state", ["away", "busy"])
def test_a_store_that_comes_back_gets_the_change_and_one_that_does_not_is_named(s3: Any, state: str, warnings: list[str]) -> None:
    tree, impatient = FileTree(s3.uri("storage"), "root", timeout_s=30), FileTree(s3.uri("storage"), "root", timeout_s=0)
    tree.update("file", one_more_letter)
    s3.become(state)
    with pytest.raises(StoreError, match=r"^cannot read storage/root/file: "):
        impatient.update("file", one_more_letter)
    timer = threading.Timer(0.5, s3.become, ["back"])
    timer.start()
    assert tree.update("file", one_more_letter) == b"!!"
    timer.join()
    assert len(warnings) == 1


@pytest.mark.parametrize("reason", ["501 Not Implemented", "cannot find credentials"])
def test_a_store_without_conditional_puts_is_written_all_the_same_with_a_warning(
    s3: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    def fail(*_: Any) -> None:
        raise NoConditionalPutsError(reason)

    monkeypatch.setattr(ConditionalPuts, "_put", fail)
    tree = FileTree(s3.uri("storage"), "root")
    assert tree.update("file", one_more_letter) == tree.read("file") == b"!"
    assert f"storage/root/file is written without protection against changes at the same moment: {reason}" in caplog.text


def test_credentials_in_a_file_need_boto3(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").touch()
    monkeypatch.setattr(conditional_puts, "find_spec", lambda _: None)
    with pytest.raises(NoConditionalPutsError, match=r"pip install 'cifar-ray\[aws\]'"):
        conditional_puts._open(s3.uri("storage"), s3.bucket, None)


def test_a_file_system_without_locks_says_so_in_one_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreError, match=r"^cannot write to .*root: No locks available$"):
        FileTree(str(tmp_path), "root").update("file", one_more)

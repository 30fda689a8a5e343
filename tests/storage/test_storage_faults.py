"""What happens when a storage is away, slow, full, or left half written by a process that was killed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar_ray.errors import ConfigError, StoreError
from cifar_ray.storage import FileTree

FILES = {"weights": b"w" * 100_000, "manifest": b"m"}
KILLED = """
import os, sys
from cifar_ray.storage import FileTree
class Dying(dict):
    def items(self):
        for name, data in super().items():
            if name == "manifest":
                print("half", flush=True)
                sys.stdin.read()
            yield name, data
FileTree(sys.argv[1], "root").add_numbered("pets", Dying({"weights": b"w" * 100_000, "manifest": b"m"}))
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def age(path: Path, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(path, (past, past))


@pytest.fixture
def saver(storage: str) -> Iterator[subprocess.Popen[str]]:
    """A process that saves, and has written the weights but not the manifest."""
    with subprocess.Popen([sys.executable, "-c", KILLED, storage], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        yield process
        process.kill()


@pytest.mark.parametrize("storage", ["path"], indirect=True)
def test_what_a_killed_saver_left_is_swept_by_the_next_and_a_living_one_lands(storage: str, saver: subprocess.Popen[str]) -> None:
    pets = Path(storage) / "root" / "pets"
    (staging,) = pets.iterdir()
    age(staging, 90_000)
    tree = FileTree(storage, "root")
    assert tree.add_numbered("pets", FILES) == 1
    assert staging.exists()  # a laptop may sleep for a day: its saver lives
    os.kill(saver.pid, signal.SIGKILL)
    saver.wait(60)
    assert tree.add_numbered("pets", FILES) == 2
    assert names_in(pets) == ["1", "2"]


@pytest.mark.parametrize("storage", ["path"], indirect=True)
def test_a_saver_that_others_wrote_beside_still_lands(storage: str, saver: subprocess.Popen[str]) -> None:
    pets = Path(storage) / "root" / "pets"
    age(next(pets.iterdir()), 90_000)
    assert FileTree(storage, "root").add_numbered("pets", FILES) == 1
    saver.communicate("")
    assert saver.returncode == 0
    assert names_in(pets) == ["1", "2"]


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
def test_a_saver_killed_before_an_object_store_has_it_all_is_swept_after_a_day(
    storage: str, saver: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = FileTree(storage, "root")
    os.kill(saver.pid, signal.SIGKILL)
    saver.wait(60)
    assert tree.add_numbered("pets", FILES) == 2
    assert tree.have_files(["pets/1/weights"]) == [True]  # it may yet live
    monkeypatch.setattr("cifar_ray.storage.local.A_DAY_S", -60.0)
    assert tree.add_numbered("pets", FILES) == 3
    assert tree.have_files(["pets/1/weights", "pets/2/weights", "pets/2/manifest"]) == [False, True, True]


def test_what_another_host_stages_is_left_alone_for_a_day(tmp_path: Path) -> None:
    tree = FileTree(str(tmp_path), "root")
    pets = tmp_path / "root" / "pets"
    for name, seconds in (("young", 80_000), ("old", 90_000)):
        (pets / f".staging-{name}").mkdir(parents=True)
        age(pets / f".staging-{name}", seconds)
    (pets / ".staging-file").touch()
    (pets / "notes").mkdir()
    tree.replace("pets/aliases", b"")
    assert names_in(pets) == [".staging-file", ".staging-young", "aliases", "notes"]


def test_a_version_of_which_the_deletion_was_cut_off_is_swept_after_a_day(tmp_path: Path) -> None:
    tree = FileTree(str(tmp_path), "root")
    for _ in range(2):
        tree.add_numbered("pets", FILES)
    for number in (1, 2):
        (tmp_path / f"root/pets/{number}/manifest").unlink()
    age(tmp_path / "root/pets/1/weights", 90_000)
    assert tree.add_numbered("pets", FILES) == 3
    assert [names_in(tmp_path / f"root/pets/{number}") for number in (1, 2, 3)] == [[], ["weights"], ["manifest", "weights"]]


@pytest.mark.parametrize("state", ["away", "busy"])
def test_a_server_that_comes_back_loses_nothing(s3: Any, state: str) -> None:
    """So short an absence pyarrow itself bears: it tries for 6 s."""
    tree = FileTree(s3.uri("storage"), "root", timeout_s=0)
    tree.add_numbered("pets", FILES)
    s3.become(state)
    back = threading.Timer(1.0, s3.become, ["back"])
    back.start()
    assert tree.add_numbered("pets", FILES) == 2
    back.join()
    assert [tree.read(f"pets/{number}/weights") for number in (1, 2)] == [FILES["weights"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("state", ["away", "busy"])
def test_a_server_that_comes_back_late_loses_nothing(s3: Any, state: str, warnings: list[str]) -> None:
    tree = FileTree(s3.uri("storage"), "root")
    tree.add_numbered("pets", FILES)
    s3.become(state)
    back = threading.Timer(20, s3.become, ["back"])
    back.start()
    assert tree.add_numbered("pets", FILES) == 2
    back.join()
    assert re.search(r"cannot list .*(NETWORK_CONNECTION|SLOW_DOWN).*; trying again for 60 s", "\n".join(warnings))
    assert [tree.read(f"pets/{number}/weights") for number in (1, 2)] == [FILES["weights"]] * 2


USES: dict[str, Callable[[FileTree], object]] = {
    "read": lambda tree: tree.read("pets/1/weights"),
    "folders": lambda tree: tree.folders(),
    "numbers": lambda tree: tree.numbers("pets"),
    "have_files": lambda tree: tree.have_files(["a"]),
    "clear_folder": lambda tree: tree.clear_folder("pets/1", first="manifest"),
    "remove": lambda tree: tree.remove(),
}
BUSY = "When listing objects: AWS Error SLOW_DOWN during ListObjectsV2 operation: Please reduce\n your request rate."


class Failing:
    """A file system of which all uses fail some times."""

    def __init__(self, real: Any, times: int, message: str) -> None:
        self.real, self.left, self.message = real, times, message

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left >= 0:
                raise OSError(self.message)
            return getattr(self.real, name)(*arguments)

        return call


@pytest.mark.parametrize("use", USES)
def test_every_use_is_tried_again_and_ends_in_one_line_after_a_stated_time(tmp_path: Path, use: str, warnings: list[str]) -> None:
    tree = FileTree(str(tmp_path), "root", timeout_s=0.3)
    tree.add_numbered("pets", FILES)
    real = tree.file_system
    tree.file_system = Failing(real, 10**9, BUSY)
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"^cannot [^\n]*SLOW_DOWN[^\n]*$"):
        USES[use](tree)
    assert 0.3 <= time.monotonic() - started < 10
    (line,) = warnings
    assert re.search(r"SLOW_DOWN.*; retrying for 0.3 s", line)
    assert FileTree(str(tmp_path), "root").read("pets/1/weights") == FILES["weights"]
    tree.file_system = Failing(real, 1, BUSY)
    USES[use](tree)


@pytest.mark.parametrize("reason", ["ACCESS_DENIED during", "NO_SUCH_BUCKET during", "UNKNOWN (HTTP status 400) during"])
def test_a_server_that_refuses_is_believed_at_once(tmp_path: Path, reason: str) -> None:
    tree = FileTree(str(tmp_path), "root", timeout_s=60)
    tree.file_system = Failing(tree.file_system, 1, f"AWS Error {reason} ListObjectsV2 operation")
    with pytest.raises(StoreError, match=r"cannot list .*AWS Error"):
        tree.folders()


def failing(times: int, code: int) -> Callable[..., None]:
    left = iter(range(times))

    def fsync(descriptor: int) -> None:
        if next(left, None) is not None:
            raise OSError(code, os.strerror(code))

    return fsync


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ETIMEDOUT])
def test_a_file_system_that_recovers_loses_nothing(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = FileTree(str(tmp_path), "root")
    for write in (lambda: tree.replace("file", b"new"), lambda: tree.add_numbered("pets", FILES)):
        monkeypatch.setattr(os, "fsync", failing(2, code))
        write()
    assert (tree.read("file"), tree.read("pets/1/weights")) == (b"new", FILES["weights"])
    assert (names_in(tmp_path / "root"), names_in(tmp_path / "root/pets")) == (["file", "pets"], ["1"])


def test_what_will_not_pass_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = FileTree(str(tmp_path), "root", timeout_s=60)
    monkeypatch.setattr(os, "fsync", failing(1, errno.EACCES))
    with pytest.raises(StoreError, match=r"cannot write .*Permission denied$"):
        tree.replace("file", b"")


def test_one_version_is_saved_though_its_last_step_fails_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = FileTree(str(tmp_path), "root")
    calls = iter([None, None, None, OSError(errno.EIO, "Input/output error")])  # of the two files, their folder; of the parent

    def fsync(descriptor: int) -> None:
        if error := next(calls, None):
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    assert (tree.add_numbered("pets", FILES), tree.numbers("pets")) == (1, [1])


def test_a_full_disk_is_named_and_costs_nothing_that_was_saved(small_disk: Path) -> None:
    tree = FileTree(str(small_disk), "root", timeout_s=0.3)
    tree.add_numbered("pets", FILES)
    tree.replace("aliases", b"production: 1")
    too_much = {"weights": bytes(4 << 20), "manifest": b"m"}
    for write in (lambda: tree.add_numbered("pets", too_much), lambda: tree.replace("aliases", too_much["weights"])):
        with pytest.raises(StoreError, match=rf"cannot write .*{small_disk}.*No space left on device.*free some space"):
            write()
    assert (tree.read("pets/1/weights"), tree.read("aliases")) == (FILES["weights"], b"production: 1")
    assert (names_in(small_disk / "root"), names_in(small_disk / "root" / "pets")) == (["aliases", "pets"], ["1"])
    assert tree.add_numbered("pets", FILES) == 2


def test_room_made_while_it_tries_again_is_enough(small_disk: Path) -> None:
    tree = FileTree(str(small_disk), "root", timeout_s=60)
    (small_disk / "ballast").write_bytes(bytes(1_900_000))
    room = threading.Timer(0.5, (small_disk / "ballast").unlink)
    room.start()
    assert tree.add_numbered("pets", {"weights": bytes(1_000_000), "manifest": b""}) == 1
    room.join()


@pytest.mark.parametrize("value", ["soon", "-1", ".", "1e3"])
def test_a_patience_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CIFAR_RAY_STORAGE_PATIENCE_S", value)
    with pytest.raises(ConfigError, match=r"CIFAR_RAY_STORAGE_PATIENCE_S: expected a number of seconds"):
        FileTree(str(tmp_path), "")

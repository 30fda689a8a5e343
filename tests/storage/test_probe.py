"""Whether hosts share a storage is found out, and told in one line."""

import threading
from pathlib import Path

import pytest

from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree, probe
from cifar_ray.storage.probe import StorageProbe


def left_in(storage: Path) -> StorageProbe:
    return StorageProbe.place(FileTree(str(storage), "runs/run"))


def test_hosts_that_see_it_go_on_and_it_stays_when_left_again(tmp_path: Path) -> None:
    left = left_in(tmp_path)
    left.check(str(tmp_path), "runs/run")
    assert left_in(tmp_path) == left


@pytest.mark.parametrize("own", ["nothing", "a folder of the same name"])
def test_a_host_that_sees_a_disk_of_its_own_says_so_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    monkeypatch.setattr(probe, "VISIBLE_WITHIN_S", 0.3)
    there, here = left_in(tmp_path / "there"), tmp_path / "here"
    if own != "nothing":
        left_in(here)
    before = sorted(tmp_path.rglob("*"))
    line = rf"--storage {here}: host \S+ does not see the files that host {there.host} wrote\. Pass a folder that all hosts share"
    with pytest.raises(StoreError, match=line):
        there.check(str(here), "runs/run")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_host_that_sees_a_new_file_late_waits_for_it(tmp_path: Path) -> None:
    left = left_in(tmp_path)
    file = tmp_path / "runs" / "run" / "mark"
    hidden = file.rename(tmp_path / "mark")
    threading.Timer(0.5, hidden.rename, [file]).start()
    left.check(str(tmp_path), "runs/run")

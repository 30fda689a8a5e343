"""Named pipes and sockets with the name of a picture: who opens them may wait without end, so nobody does."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_ray.data.decode import decode_image, decode_square
from cifar_ray.data.decoding.picture_files import direct_pictures
from cifar_ray.data.listing.layouts import list_folder
from cifar_ray.errors import ImageError
from cifar_ray.inference.batch.pictures import read_picture

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.jpg")
    return tmp_path / "pipe.jpg"


@pytest.mark.parametrize(
    "read",
    [decode_image, lambda path: decode_square(path, 8, "crop"), lambda path: read_picture(str(path))],
    ids=["image", "square", "predict"],
)
def test_a_named_pipe_is_refused_in_one_line(pipe: Path, read: Callable[[Path], object]) -> None:
    link = pipe.with_name("link.jpg")
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(ImageError, match=r"(pipe|link)\.jpg: is a named pipe, not a file; copy its content to a file$"):
            read(path)


def test_special_files_in_class_folders_are_left_out_and_counted(
    tmp_path: Path, pipe: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        (root / name / "0.jpg").touch()
    (root / "ant" / "linked.jpg").symlink_to(root / "bee" / "0.jpg")
    (root / "ant" / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "ant" / "pipe.jpg").symlink_to(pipe)
    os.mkfifo(root / "bee" / "1.png")
    monkeypatch.chdir(root / "bee")  # the path of a socket is at most about 100 bytes long
    with socket.socket(socket.AF_UNIX) as server, caplog.at_level(logging.INFO):
        server.bind("2.png")
        listing = list_folder(root)
    # Decoding reports a dangling link as a damaged picture, by its name.
    assert listing.parts["train"].pictures.names.tolist() == [b"ant/0.jpg", b"ant/dangling.jpg", b"ant/linked.jpg", b"bee/0.jpg"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: left out files that cannot be read as pictures: 2 named pipes, 1 socket"
    ]


def test_named_pipes_beside_class_folders_are_no_pictures(pipe: Path) -> None:
    pipe.with_name("0.jpg").touch()
    assert direct_pictures(pipe.parent) == ["0.jpg"]

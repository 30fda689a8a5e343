"""No name from a client, a list or a link opens a file outside the storage's folder for jobs, or an address that is not allowed."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cifar_ray.config import parse_config
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import ConfigError, DataError, ImageError, ImageTooLargeError, StoreError
from cifar_ray.jobs import web_files
from cifar_ray.jobs.job_sources import JobSources
from cifar_ray.jobs.name_files import NameFiles
from cifar_ray.jobs.safe_paths import check_relative
from tests.conftest import S3

SECRET = b"a file outside"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A storage with pictures, beside a file that nobody may read."""
    (tmp_path / "secret.jpg").write_bytes(SECRET)
    inputs = tmp_path / "storage/inputs"
    (inputs / "spring/may").mkdir(parents=True)
    for name in ("spring/a.jpg", "spring/may/b.PNG", "spring/notes.md", "spring/.hidden.jpg", "alone.jpg"):
        (inputs / name).write_bytes(name.encode())
    (tmp_path / "storage/models").mkdir()
    (tmp_path / "storage/models/m.jpg").write_bytes(SECRET)
    return tmp_path / "storage"


BAD = [
    "/etc/passwd",
    "..",
    "../models/m.jpg",
    "spring/../../models/m.jpg",
    "spring/..",
    "./spring",
    "spring//a.jpg",
    "spring/",
    "",
    "~root/a.jpg",
    ".queue",
    "%2e%2e/models/m.jpg",
    "%252e%252e/models",
    "spring/%2e%2e%2f..",
    "..%c0%af",
    "spring\\..\\..\\models",
    "．．/models",  # full-width full stops
    "spring／..／..",  # a full-width slash
    "spring/\0a.jpg",
    "spring/a\n.jpg",
    "spring/\u202eb.jpg",
    "C:/windows",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "http://169.254.169.254/a.jpg",
    "s3://bucket/photos",
    "a" * 1001,
]


@pytest.mark.parametrize("source", BAD)
def test_a_source_that_could_leave_the_folder_is_refused(storage: Path, source: str) -> None:
    sources = JobSources(str(storage), ["https://a.example/photos"])
    with pytest.raises(ConfigError):
        sources.check(source)
    with pytest.raises(ConfigError):
        list(sources.pictures(source))


@pytest.mark.parametrize("name", [*BAD[:9], "spring/\0a.jpg", "file:///etc/passwd", "http://a.example/a.jpg", "missing.jpg"])
def test_a_name_in_a_list_that_leaves_the_folder_is_an_error_of_that_picture(storage: Path, name: str) -> None:
    with pytest.raises(ImageError):
        JobSources(str(storage)).read(name)


def test_usual_names_are_allowed() -> None:
    for path in ("spring", "a/b c/d.jpg", "100%.jpg", "Überraschung/frühling.jpg", "a..b/c.jpg", "50%25"):
        assert check_relative(path) == path


@pytest.mark.parametrize("target", ["../../secret.jpg", "../models/m.jpg", "/etc/hostname"])
def test_links_that_lead_outside_are_not_followed(storage: Path, target: str) -> None:
    inputs, sources = storage / "inputs", JobSources(str(storage))
    (inputs / "link.jpg").symlink_to(target)
    (inputs / "spring/link.jpg").symlink_to(inputs / target)
    (inputs / "folder").symlink_to(storage.parent)
    (inputs / "list.txt").symlink_to(storage.parent / "secret.jpg")
    for name in ("link.jpg", "spring/link.jpg", "folder/secret.jpg"):
        with pytest.raises(ImageError):
            sources.read(name)
    for source in ("link.jpg", "folder"):
        with pytest.raises(ConfigError, match="link leads out"):
            sources.check(source)
    with pytest.raises(DataError):
        list(sources.pictures("list.txt"))
    assert list(sources.pictures("folder")) == []


def test_a_link_that_stays_inside_is_read_and_a_linked_folder_is_not_searched(storage: Path) -> None:
    inputs, sources = storage / "inputs", JobSources(str(storage))
    (inputs / "spring/again.jpg").symlink_to(inputs / "alone.jpg")
    (inputs / "spring/up").symlink_to(inputs / "spring")
    assert sources.read("spring/again.jpg") == b"alone.jpg"
    assert sorted(sources.pictures("spring")) == ["spring/a.jpg", "spring/again.jpg", "spring/may/b.PNG"]


def test_a_named_pipe_does_not_block(storage: Path) -> None:
    os.mkfifo(storage / "inputs/spring/pipe.jpg")
    with pytest.raises(ImageError, match="named pipe"):
        JobSources(str(storage)).read("spring/pipe.jpg")


def test_a_folder_a_list_and_a_picture(storage: Path) -> None:
    sources = JobSources(str(storage))
    (storage / "inputs/spring/list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nmay/b.PNG\n\n../../models/m.jpg")
    assert sorted(sources.pictures("spring")) == ["spring/a.jpg", "spring/may/b.PNG"]
    assert list(sources.pictures("spring/a.jpg")) == ["spring/a.jpg"]
    assert sources.read("spring/may/b.PNG") == b"spring/may/b.PNG"
    names = list(sources.pictures("spring/list.txt"))
    assert names == ["spring/a.jpg", "spring/may/b.PNG", "spring/../../models/m.jpg"]
    with pytest.raises(ImageError):
        sources.read(names[2])
    with pytest.raises(DataError, match="not found"):
        sources.check("autumn")


def test_a_list_that_is_no_list_is_one_line(storage: Path) -> None:
    (storage / "inputs/binary.txt").write_bytes(b"\xff\xfe\0" * 5000)
    with pytest.raises(DataError):
        list(JobSources(str(storage)).pictures("binary.txt"))


def test_a_long_list_takes_no_memory(storage: Path, tmp_path: Path) -> None:
    lines = 60_000
    (storage / "inputs/long.txt").write_text("".join(f"folder/of/some/camera/picture-{number:09d}.jpg\n" for number in range(lines)))
    names = NameFiles(str(tmp_path / "jobs"), "one/names")
    tracemalloc.start()
    try:
        assert names.write(JobSources(str(storage)).pictures("long.txt"), 5000) == lines
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # all names together take 5.9 MB
    assert names.sizes() == (lines, 5000)
    assert names.names(11)[-1] == f"folder/of/some/camera/picture-{lines - 1:09d}.jpg"


def test_of_two_lists_of_a_job_only_one_counts(tmp_path: Path) -> None:
    first, second = (NameFiles(str(tmp_path), "names") for _ in range(2))
    assert first.write(["a", "b", "c"], 2) == 3
    assert second.write(["c", "b"], 2) == 3
    assert [second.names(number) for number in (0, 1)] == [("a", "b"), ("c",)]


@contextmanager
def web_server() -> Iterator[str]:
    """`/photos/…` exists; `/photos/moved.jpg` leads to a secret, `/secret.jpg`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = {"/photos/a.jpg": b"a", "/photos/sp%20ace.jpg": b"space", "/secret.jpg": SECRET, "/photos/huge.jpg": b"x" * 200}
            content["/photos/list.txt"] = b"a.jpg\nmoved.jpg\n../secret.jpg\n/secret.jpg\nhttp://b.example/a.jpg"
            found = content.get(self.path)
            self.send_response(302 if self.path == "/photos/moved.jpg" else 200 if found else 404)
            self.send_header("Location", "/secret.jpg")
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_web_server_is_read_below_the_allowed_address_only(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_files, "MAX_PICTURE_BYTES", 100)
    with web_server() as url:
        sources = JobSources(str(storage), [f"{url}/photos"])
        assert sources.read(f"{url}/photos/a.jpg") == b"a"
        assert sources.read(f"{url}/photos/sp ace.jpg") == b"space"
        names = list(sources.pictures(f"{url}/photos/list.txt"))
        assert names == [
            f"{url}/photos/a.jpg",
            f"{url}/photos/moved.jpg",
            f"{url}/secret.jpg",
            f"{url}/secret.jpg",
            "http://b.example/a.jpg",
        ]
        for name in (*names[1:], f"{url}/photos/missing.jpg", f"{url}/photos/%2e%2e/secret.jpg", f"{url}/photos/a.jpg?x", f"{url}/photos"):
            with pytest.raises(ImageError):
                sources.read(name)
        with pytest.raises(ImageTooLargeError):
            sources.read(f"{url}/photos/huge.jpg")
        for source in (f"{url}/photos/spring", f"{url}/photosecret/a.jpg", f"{url.replace('127.0.0.1', 'x@127.0.0.1')}/photos/a.jpg"):
            with pytest.raises(ConfigError):
                sources.check(source)


def test_a_web_server_that_is_away_is_no_error_of_a_picture(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_files, "_PAUSE_S", 0)
    with pytest.raises(StoreError, match="no answer"):
        JobSources(str(storage), ["http://127.0.0.1:9/photos"]).read("http://127.0.0.1:9/photos/a.jpg")


def test_an_object_store_is_read_with_the_options_of_the_operator(s3: S3, storage: Path) -> None:
    options = s3.uri("").partition("?")[2]
    shown = f"s3://{s3.bucket}/photos"
    sources = JobSources(str(storage), [f"{shown}?{options}"])
    file_system = sources._tree(sources._locate(f"{shown}/x")).file_system
    for key in ("photos/spring/a.jpg", "photos/spring/may/b.png", "photos/spring/c.txt", "private/a.jpg"):
        with file_system.open_output_stream(f"{s3.bucket}/{key}") as file:
            file.write(key.encode())
    with file_system.open_output_stream(f"{s3.bucket}/photos/list.txt") as file:
        file.write(b"spring/a.jpg\n../private/a.jpg\n")
    assert list(sources.pictures(f"{shown}/spring")) == [f"{shown}/spring/a.jpg", f"{shown}/spring/may/b.png"]
    first, second = sources.pictures(f"{shown}/list.txt")
    assert sources.read(first) == b"photos/spring/a.jpg"
    with pytest.raises(ImageError):
        sources.read(second)
    with pytest.raises(DataError):
        sources.check(f"{shown}/autumn")
    for source in (f"{shown}/spring?endpoint_override=evil.example", f"s3://{s3.bucket}/private/a.jpg", f"{shown}/../private"):
        with pytest.raises(ConfigError):
            sources.check(source)


def test_a_storage_in_an_object_store_has_a_folder_for_jobs_too(s3: S3) -> None:
    sources = JobSources(s3.uri("store"))
    tree = sources._tree(sources._locate("x"))
    tree.replace("spring/a.jpg", b"a")
    sources.check("spring")
    assert [sources.read(name) for name in sources.pictures("spring")] == [b"a"]


@pytest.mark.parametrize("address", ["file:///etc", "/etc", "s3://", "ftp://a/b", "https://a.example/x?y=1", "https://a b/", "a.example"])
def test_an_operator_cannot_allow_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="job_sources"):
        parse_config(ServeConfig, {"job_sources": address})
    assert parse_config(ServeConfig, {"job_sources": "s3://b/x?region=eu-west-1, https://a.example:8443"}).job_sources == (
        "s3://b/x?region=eu-west-1",
        "https://a.example:8443",
    )

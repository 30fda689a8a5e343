"""A wheel, installed into an empty environment outside the checkout, does all that a user needs. `make wheel-test`; minutes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
START_S = 120


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [BIN / "uv", "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, ROOT]
    subprocess.run(list(map(str, command)), check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel and the locked packages, and nothing of the checkout."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    python = environment / "bin/python"
    for command in (
        [BIN / "uv", "venv", "-q", "--python", sys.executable, environment],
        [BIN / "uv", "pip", "install", "-q", "--python", python, "--require-hashes", "-r", ROOT / "requirements.production.lock"],
        [BIN / "uv", "pip", "install", "-q", "--python", python, "--no-deps", wheel],
    ):
        subprocess.run(list(map(str, command)), check=True)
    return environment / "bin"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder that is not the checkout."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def surroundings(place: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS", "VIRTUAL_ENV")}
    return kept | {"CIFAR_RAY_STORAGE": str(place / "storage"), "CIFAR_RAY_CACHE": str(place / "cache")}


def run(command: list[Path | str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_licence_and_all_files_that_are_not_python(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "cifar_ray", "deployments"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_commands_run_without_the_checkout(installed: Path, place: Path, surroundings: dict[str, str]) -> None:
    for arguments, expected in ((["--help"], "serve"), (["store", "list"], "no model"), (["train", "--list-recipes"], "airbench94")):
        shown = run([installed / "cifar-ray", *arguments], place, surroundings)
        assert expected in shown.stdout


def test_the_demo_runs_and_leaves_a_model(installed: Path, place: Path, surroundings: dict[str, str]) -> None:
    shown = run([installed / "cifar-ray", "demo"], place, surroundings)
    assert shown.returncode == 0, shown.stderr
    assert "which is right" in shown.stdout
    assert "digits" in run([installed / "cifar-ray", "store", "list"], place, surroundings).stdout


@pytest.fixture
def server(installed: Path, place: Path, surroundings: dict[str, str]) -> Iterator[int]:
    """The port of a server of that model; stopped by Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    command = [installed / "cifar-ray", "serve", "digits", "--port", str(port)]
    with (place / "server.log").open("w") as log, subprocess.Popen(command, cwd=place, env=surroundings, stdout=log, stderr=log) as process:
        try:
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_serve_answers_over_http(server: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server}/ready", timeout=5) as answer:
                assert json.load(answer)["model"] == "digits"
            break
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.5)
    picture = BytesIO()
    Image.new("RGB", (32, 32), "white").save(picture, "PNG")
    request = urllib.request.Request(f"http://127.0.0.1:{server}/predict", picture.getvalue(), {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["class_name"] in map(str, range(10))
    with urllib.request.urlopen(f"http://127.0.0.1:{server}/", timeout=30) as page:
        assert b"<html" in page.read()

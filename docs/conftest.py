"""Runs the examples of these pages: `make docs-test`.

Fenced blocks with `sh` and `python` are run in the order of their page, in a folder that has what the pages assume: photographs, a model
of them, a broken file. A comment `skip: next "reason"` excepts the next one. A server that a block starts runs until the page ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parent.parent
READY = "http://localhost:8000/ready"
_START_S = 180
_COMMAND_S = 300
_SERVERS = ("serve run ", "cifar-ray serve")


def draw_photographs(folder: Path, count: int, seed: int = 0) -> None:
    """Make pictures of two kinds of insects, that differ in shape: `count` for each class."""
    rng = np.random.default_rng(seed)
    for name in ("ants", "bees"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.fromarray(rng.integers(90, 160, (120, 160, 3), dtype=np.uint8))
            pen, (x, y) = ImageDraw.Draw(picture), rng.integers(20, 60, 2).tolist()
            if name == "ants":
                for part in range(3):
                    pen.ellipse((x + 18 * part, y, x + 18 * part + 16, y + 14), fill=(40, 20, 10))
            else:
                pen.ellipse((x, y, x + 60, y + 44), fill=(240, 190, 30))
                for part in range(3):
                    pen.line((x + 14 + 14 * part, y, x + 14 + 14 * part, y + 44), fill=(20, 20, 20), width=6)
            picture.save(folder / name / f"{name}{number:02}.jpg", quality=90)


def _prepared() -> Path:
    """A folder with what the pages assume, made once for a session."""
    folder = Path(tempfile.mkdtemp(prefix="docs-"))
    draw_photographs(folder / "photos", 30)
    draw_photographs(folder / "flowers", 12, seed=1)
    draw_photographs(folder / "other_photos", 8, seed=2)
    (folder / "more").mkdir()
    for number, file in enumerate(sorted((folder / "other_photos").rglob("*.jpg"))):
        shutil.copy(file, folder / "more" / f"IMG_{number:04}.jpg")
    for name, source in {"bee.jpg": "bees/bees00.jpg", "a.jpg": "ants/ants00.jpg", "IMG_0001.jpg": "ants/ants01.jpg"}.items():
        shutil.copy(folder / "photos" / source, folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    (folder / "pictures").mkdir()
    for number, file in enumerate(sorted((folder / "flowers").rglob("*.jpg"), key=lambda file: file.name[4:])[:10]):
        Image.open(file).crop((0, 0, 96, 96)).resize((48, 48)).save(folder / "pictures" / f"{number}.png")
    return folder


class Page:
    """The state of one page: its folder, its environment and its server."""

    prepared: Path | None = None

    def __init__(self) -> None:
        if Page.prepared is None:
            Page.prepared = _prepared()
        self.folder = Path(tempfile.mkdtemp(prefix="page-"))
        shutil.copytree(Page.prepared, self.folder, dirs_exist_ok=True)
        self.server: subprocess.Popen[bytes] | None = None
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "CIFAR_RAY_CACHE": str(Page.prepared / "cache"),
        }
        self.environment.pop("CIFAR_RAY_STORAGE", None)

    def run(self, script: str) -> None:
        """Run the lines of a block; a line that starts a server starts it in the background."""
        waiting: list[str] = []
        for line in script.splitlines():
            if line.startswith(_SERVERS):
                self._run_all(waiting)
                waiting = []
                self._serve(line)
            else:
                waiting.append(line)
        self._run_all(waiting)

    def _run_all(self, lines: list[str]) -> None:
        script = "\n".join(lines)
        if not script.strip():
            return
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script.replace("curl ", "curl -sS --fail-with-body ")],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=_COMMAND_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\nexit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def _serve(self, line: str) -> None:
        self.stop()
        log = (self.folder / "server.log").open("wb")
        self.server = subprocess.Popen(
            ["bash", "-c", "exec " + line], cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.server.poll() is None:
            try:
                with urllib.request.urlopen(READY, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise AssertionError(f"{line}: no answer\n{(self.folder / 'server.log').read_text()[-3000:]}")

    def stop(self) -> None:
        """Stop the server, if one runs."""
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            try:
                self.server.wait(180)
            except subprocess.TimeoutExpired:
                os.killpg(self.server.pid, signal.SIGKILL)
                self.server.wait()
        self.server = None

    def remove(self) -> None:
        """End the page."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def set_up(namespace: dict[str, Any]) -> None:
    """Before the first example of a page."""
    page = Page()
    namespace["_page"], namespace["_before"] = page, (Path.cwd(), os.environ.get("CIFAR_RAY_CACHE"))
    os.chdir(page.folder)
    os.environ["CIFAR_RAY_CACHE"] = page.environment["CIFAR_RAY_CACHE"]
    page.run("cifar-ray train --data-dir photos")


def tear_down(namespace: dict[str, Any]) -> None:
    """After the last one."""
    folder, cache = namespace["_before"]
    os.chdir(folder)
    if cache is None:
        os.environ.pop("CIFAR_RAY_CACHE", None)
    else:
        os.environ["CIFAR_RAY_CACHE"] = cache
    namespace["_page"].remove()


def run_shell(example: Example) -> None:
    """Run a block of commands."""
    example.namespace["_page"].run(example.parsed)


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("sh", run_shell), PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    setup=set_up,
    teardown=tear_down,
).pytest()

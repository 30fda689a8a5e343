"""Run a command; record its duration, the time of each line that it prints, and its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SAMPLED_EVERY_S = 0.05


@dataclass(frozen=True)
class Finished:
    """A command that succeeded.

    Attributes:
        seconds: time from the start of the command to its end.
        lines: printed lines, each with the seconds since the start.
        peak_rss_bytes: peak resident memory of the main process.
        peak_anonymous_bytes: peak resident memory without pages of files, such as memory-mapped caches.
    """

    seconds: float
    lines: list[tuple[float, str]]
    peak_rss_bytes: int
    peak_anonymous_bytes: int


@dataclass(frozen=True)
class Trained:
    """A finished `train`.

    Attributes:
        finished: the command.
        metrics: figures of the saved model.
        counts: number of pictures by split.
    """

    finished: Finished
    metrics: Mapping[str, float]
    counts: Mapping[str, int]

    @property
    def start_up_s(self) -> float:
        """Seconds until the command printed its first line: Python, imports, settings and a look at the folder."""
        return self.finished.lines[0][0]


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> Finished:
    """Run a command and wait for its end.

    Raises:
        SystemExit: if it fails; the message has its last lines.
    """
    variables = os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {})
    started, lines = time.perf_counter(), []
    process = subprocess.Popen(
        command, env=variables, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    memory = _Memory(process.pid)
    memory.start()
    assert process.stdout is not None
    for line in process.stdout:
        lines.append((time.perf_counter() - started, line.rstrip()))
    code = process.wait()
    seconds = time.perf_counter() - started
    memory.join()
    if code != 0:
        tail = "\n".join(line for _, line in lines[-20:])
        raise SystemExit(f"{tail}\nfailed with exit code {code}: {' '.join(map(str, command))}")
    return Finished(seconds, lines, memory.rss_bytes, memory.anonymous_bytes)


class _Memory(threading.Thread):
    """Samples the memory of a process until it ends."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{process}/status")
        self.rss_bytes = self.anonymous_bytes = 0

    def run(self) -> None:
        while (found := read_memory(self._status)) is not None:
            self.rss_bytes, self.anonymous_bytes = max(self.rss_bytes, found[0]), max(self.anonymous_bytes, found[1])
            time.sleep(_SAMPLED_EVERY_S)


def read_memory(status: Path) -> tuple[int, int] | None:
    """Resident bytes of a process, in all and anonymous, from its file in /proc; `None` if it has ended."""
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return _bytes(lines["VmRSS"]), _bytes(lines["RssAnon"])
    except (OSError, KeyError):
        return None


def _bytes(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) * 1024


def train(data: Path, work: Path, cache: Path, *flags: str) -> Trained:
    """Run `python -m cifar_ray.train --data-dir DATA` with an empty storage.

    Args:
        data: folder of pictures.
        work: folder for the storage.
        cache: folder for decoded pictures and features; an empty one makes a first run, a used one a second run.
        flags: further flags.
    """
    storage = tempfile.mkdtemp(prefix="storage-", dir=work)
    command = [sys.executable, "-m", "cifar_ray.train", "--data-dir", str(data), "--storage", storage, *flags]
    finished = run(command, {"CIFAR_RAY_CACHE": str(cache), "PYTHONPATH": str(ROOT)}, work)
    (manifest,) = [json.loads(path.read_text()) for path in Path(storage).glob("models/*/*/manifest.json")]
    return Trained(finished, manifest["metrics"], manifest["image_counts"])

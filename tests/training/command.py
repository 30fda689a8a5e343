"""A training in a process of its own, for tests that kill it."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from cifar_ray.store import ModelStore

PATIENCE_S = 280
TIMELESS = ("seconds", "images_per_s")


class Command:
    """A training in a process of its own, whose lines are read as they come."""

    def __init__(self, storage: Path, *flags: str) -> None:
        self.mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "cifar_ray.train", "--storage", str(storage), *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"CIFAR_RAY_TEST": self.mark}
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(line.rstrip())
        self._queue.put(None)

    def wait_for(self, start: str) -> None:
        """Until one of the lines to come begins so."""
        deadline = time.monotonic() + PATIENCE_S
        line: str | None = ""
        while not (line and line.startswith(start)):
            line = self._queue.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, self.lines
            self.lines.append(line)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Until it ends; its exit code."""
        code = self.process.wait(patience_s)
        while (line := self._queue.get(timeout=PATIENCE_S)) is not None:
            self.lines.append(line)
        return code

    def pids(self, title: str = "") -> list[int]:
        """Processes that it started, workers of Ray included, whose title has `title`."""
        return marked(self.mark, title)

    def gone(self) -> bool:
        """Whether all of them end by themselves."""
        deadline = time.monotonic() + 180  # Ray's agents wait a minute for a head that is gone
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.2)
        return not self.pids()

    def shared_memory(self) -> set[Path]:
        """Files in memory that they hold and that have a name."""
        found: set[Path] = set()
        for pid in self.pids():
            try:
                found |= set(map(Path, re.findall(r" (/dev/shm/\S+)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)))
            except OSError:
                continue
        return {path for path in found if path.exists()}

    def end(self) -> None:
        """Leaves nothing behind, also where a test failed."""
        for pid in [self.process.pid, *self.pids()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(PATIENCE_S)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


def marked(mark: str, title: str = "") -> list[int]:
    """Processes with `mark` in their environment and `title` in their title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and title.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def outcome(storage: Path, run: str) -> tuple[list[dict[str, object]], str]:
    """History without times, and the sha256 of the weights that were kept."""
    history = json.loads((storage / "runs" / run / "history.json").read_text())
    weights = ModelStore(str(storage)).manifest(run).weights_sha256
    return [{key: value for key, value in epoch.items() if key not in TIMELESS} for epoch in history], weights

"""Whole commands that are killed in the middle, and typed again. Each test starts Ray a time or two: `make test-slow`."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cifar_ray.store import ModelStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLAGS = ["--dataset", "digits", "--epochs", "5", "--precision", "fp32", "--num-workers", "1", "--averaging.name", "ema"]
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
        """Until a line begins so."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.lines and self.lines[-1].startswith(start)):
            line = self._queue.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, self.lines
            self.lines.append(line)

    def wait(self) -> int:
        """Until it ends; its exit code."""
        code = self.process.wait(PATIENCE_S)
        while (line := self._queue.get(timeout=PATIENCE_S)) is not None:
            self.lines.append(line)
        return code

    def pids(self, title: str = "") -> list[int]:
        """Processes that it started, workers of Ray included, whose title has `title`."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                marked = folder.name.isdigit() and self.mark.encode() in (folder / "environ").read_bytes()
                if marked and title.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

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


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        command.end()


def outcome(storage: Path, run: str) -> tuple[list[dict[str, object]], str]:
    """History without times, and the sha256 of the weights that were kept."""
    history = json.loads((storage / "runs" / run / "history.json").read_text())
    weights = ModelStore(str(storage)).manifest(run).weights_sha256
    return [{key: value for key, value in epoch.items() if key not in TIMELESS} for epoch in history], weights


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def expected(storage: Path) -> tuple[list[dict[str, object]], str]:
    whole = Command(storage, *FLAGS, "--name", "whole", "--save-as", "whole")
    try:
        assert whole.wait() == 0, whole.lines
    finally:
        whole.end()
    return outcome(storage, "whole")


def start(commands: list[Command], storage: Path, name: str, *more: str) -> Command:
    command = Command(storage, *FLAGS, "--name", name, "--save-as", name, *more)
    commands.append(command)
    return command


def gone(command: Command) -> bool:
    deadline = time.monotonic() + 30
    while command.pids() and time.monotonic() < deadline:
        time.sleep(0.2)
    return not command.pids()


def test_a_worker_that_is_killed_is_replaced_and_the_result_is_the_same(commands: list[Command], storage: Path, expected: object) -> None:
    command = start(commands, storage, "worker")
    command.wait_for("epoch 2/5")
    (worker,) = command.pids("ray::RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    assert command.wait() == 0, command.lines
    assert any(line.startswith("workers were lost; new ones go on from ") for line in command.lines)
    assert outcome(storage, "worker") == expected
    finished = json.loads((storage / "runs" / "worker" / "finished.json").read_text())
    assert (finished["restarts"], finished["tries"]) == (1, 2)
    assert len(list((storage / "runs" / "worker").glob("epoch-*"))) == 1


def test_a_worker_that_hangs_is_replaced_within_the_time_that_was_set(commands: list[Command], storage: Path, expected: object) -> None:
    command = start(commands, storage, "hung", "--worker-timeout-s", "10")
    command.wait_for("epoch 2/5")
    (worker,) = command.pids("ray::RayTrainWorker")
    os.kill(worker, signal.SIGSTOP)
    assert command.wait() == 0, command.lines
    assert any(line.startswith("workers were lost") for line in command.lines)
    assert outcome(storage, "hung") == expected


def test_the_same_command_goes_on_when_the_driver_was_killed(commands: list[Command], storage: Path, expected: object) -> None:
    first = start(commands, storage, "driver")
    first.wait_for("epoch 2/5")
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    assert gone(first)
    again = start(commands, storage, "driver")
    assert again.wait() == 0, again.lines
    assert outcome(storage, "driver") == expected
    assert len(list((storage / "runs" / "driver").glob("epoch-*"))) == 1
    refused = start(commands, storage, "driver")
    assert refused.wait() == 2
    assert "is finished" in refused.lines[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_leaves_no_process(
    commands: list[Command], storage: Path, expected: object, number: signal.Signals
) -> None:
    name = number.name.lower()
    command = start(commands, storage, name)
    command.wait_for("epoch 2/5")
    command.process.send_signal(number)
    assert command.wait() == 128 + number, command.lines
    assert command.lines[-1] == f"run {name} is saved; go on with: python -m cifar_ray.train --resume {name} --storage {storage}"
    assert "Traceback" not in "\n".join(command.lines)
    assert gone(command)
    assert len(json.loads((storage / "runs" / name / "history.json").read_text())) >= 2
    again = Command(storage, "--resume", name)
    commands.append(again)
    assert again.wait() == 0, again.lines
    assert outcome(storage, name) == expected


def test_a_second_signal_ends_at_once(commands: list[Command], storage: Path) -> None:
    command = start(commands, storage, "twice")
    command.wait_for("epoch 1/5")
    (worker,) = command.pids("ray::RayTrainWorker")
    os.kill(worker, signal.SIGSTOP)  # so that it cannot save
    command.process.send_signal(signal.SIGINT)
    command.wait_for("saving and stopping")
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM, command.lines
    assert command.lines[-1].startswith("run twice ended at once; go on with: ")
    assert gone(command)

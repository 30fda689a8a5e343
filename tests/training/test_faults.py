"""Whole commands that are killed in the middle, and typed again. Each test starts Ray a time or two: `make test-slow`."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.command import Command, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLAGS = ["--dataset", "digits", "--epochs", "5", "--precision", "fp32", "--num-workers", "1", "--averaging.name", "ema"]
BOTH = pytest.mark.parametrize("place", ["local", "start"])


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        command.end()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def expected(storage: Path) -> tuple[list[dict[str, object]], str]:
    """What one process leaves that nothing harmed; a worker of Ray must leave the same."""
    whole = Command(storage, *FLAGS, "--cluster", "local", "--name", "whole", "--save-as", "whole")
    try:
        assert whole.wait() == 0, whole.lines
    finally:
        whole.end()
    return outcome(storage, "whole")


def start(commands: list[Command], storage: Path, name: str, *more: str, place: str = "start") -> Command:
    command = Command(storage, *FLAGS, "--cluster", place, "--name", name, "--save-as", name, *more)
    commands.append(command)
    return command


def test_a_worker_that_is_killed_is_replaced_and_the_result_is_the_same(commands: list[Command], storage: Path, expected: object) -> None:
    command = start(commands, storage, "worker")
    command.wait_for("epoch 2/5")
    (worker,) = command.pids("ray::RayTrainWorker")
    os.kill(worker, signal.SIGKILL)
    assert command.wait() == 0, command.lines
    assert any(line.startswith("worker failure: resuming with new workers from ") for line in command.lines)
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
    assert any(line.startswith("worker failure") for line in command.lines)
    assert outcome(storage, "hung") == expected


@BOTH
def test_the_same_command_goes_on_when_the_driver_was_killed(commands: list[Command], storage: Path, expected: object, place: str) -> None:
    name = f"driver-{place}"
    first = start(commands, storage, name, place=place)
    first.wait_for("epoch 2/5")
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    assert first.gone()
    again = start(commands, storage, name, place=place)
    assert again.wait() == 0, again.lines
    assert outcome(storage, name) == expected
    assert len(list((storage / "runs" / name).glob("epoch-*"))) == 1
    refused = start(commands, storage, name, place=place)
    assert refused.wait() == 2
    assert "is finished" in refused.lines[-1]


@BOTH
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_leaves_no_process(
    commands: list[Command], storage: Path, expected: object, number: signal.Signals, place: str
) -> None:
    name = f"{number.name.lower()}-{place}"
    command = start(commands, storage, name, place=place)
    command.wait_for("epoch 2/5")
    command.process.send_signal(number)
    assert command.wait() == 128 + number, command.lines
    assert command.lines[-1] == f"run {name} is saved; resume it with: cifar-ray train --resume {name} --storage {storage}"
    assert "Traceback" not in "\n".join(command.lines)
    assert command.gone()
    assert len(json.loads((storage / "runs" / name / "history.json").read_text())) >= 2
    again = Command(storage, "--resume", name)
    commands.append(again)
    assert again.wait() == 0, again.lines
    assert outcome(storage, name) == expected


def test_a_signal_to_all_processes_saves_as_one_to_the_command_does(commands: list[Command], storage: Path, expected: object) -> None:
    command = start(commands, storage, "all")
    command.wait_for("epoch 2/5")
    for pid in command.pids():
        os.kill(pid, signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM, command.lines
    assert command.lines[-1].startswith("run all is saved; resume it with: ")
    assert command.gone()
    again = start(commands, storage, "all")
    assert again.wait() == 0, again.lines
    assert any(line.startswith("resuming from step ") for line in again.lines)
    assert outcome(storage, "all") == expected


def test_a_second_signal_ends_at_once(commands: list[Command], storage: Path) -> None:
    command = start(commands, storage, "twice")
    command.wait_for("epoch 1/5")
    (worker,) = command.pids("ray::RayTrainWorker")
    os.kill(worker, signal.SIGSTOP)  # so that it cannot save
    command.process.send_signal(signal.SIGINT)
    command.wait_for("saving and stopping")
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM, command.lines
    assert command.lines[-1].startswith("run twice stopped without saving; resume it with: ")
    assert command.gone()

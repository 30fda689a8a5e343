"""What a driver makes of the messages of its run."""

from typing import Any

import pytest

from cifar_ray.training.records.run_log import RunLog


class Lines:
    """A listener that keeps lines only."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, text: str) -> None:
        self.lines.append(text)

    def on_step(self, *step: int) -> None:
        """As asked."""

    def on_epoch(self, report: Any) -> None:
        """As asked."""


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> RunLog:
    """Of a run that began with two workers and is at step 6 of epoch 2, of 10 steps."""
    log = RunLog(lines)
    log.handle("start", (0, 0, [], 2))
    log.handle("step", (2, 6, 10))
    return log


def test_workers_that_were_lost_count_as_a_fault(log: RunLog, lines: Lines) -> None:
    log.handle("start", (1, 0, [], 2))
    log.handle("step", (2, 3, 10))
    log.handle("start", (1, 2, [], 1))
    assert lines.lines == [
        "worker failure: resuming with new workers from step 1 of epoch 2, 6 steps repeated",
        "worker failure: resuming with 1 instead of 2 workers from step 3 of epoch 2, 1 step repeated",
    ]
    assert (log.restarts, log.repeated_steps) == (2, 7)
    assert log.workers == [(1, 1, 2), (2, 1, 2), (2, 3, 1)]


def test_a_change_of_their_number_does_not(log: RunLog, lines: Lines) -> None:
    log.handle("resize", 3)
    log.handle("start", (1, 6, [], 3))
    assert lines.lines == ["the cluster changed: resuming with 3 instead of 2 workers from step 7 of epoch 2, 0 steps repeated"]
    assert (log.restarts, log.repeated_steps) == (0, 0)
    log.handle("start", (1, 6, [], 2))
    assert log.restarts == 1


def test_it_knows_when_nobody_works(log: RunLog, lines: Lines) -> None:
    log.handle("wait", None)
    assert log.waits
    assert lines.lines == ["too few hosts for the minimum number of workers; waiting for more"]
    log.handle("start", (1, 0, [], 2))
    assert not log.waits

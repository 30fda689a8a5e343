"""The replica that runs jobs goes on after errors, gives its job back when it stops, and tells Serve when it is of no more use."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import StoreError
from cifar_ray.inference.batch.job_runner import JobRunner
from cifar_ray.jobs.job_queue import JobQueue
from deployments.replicas import jobs_replica
from deployments.replicas.jobs_replica import JobsReplica


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    monkeypatch.setattr(jobs_replica.os, "nice", lambda _: 19)
    monkeypatch.setattr(jobs_replica, "_POLL_S", 0.01)
    return ServeConfig(storage=str(tmp_path), jobs=True)


def test_a_storage_that_is_away_is_logged_once_and_the_next_look_goes_on(
    config: ServeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    def run_next(self: JobRunner) -> None:
        looks.append(1)
        if len(looks) < 4:
            raise StoreError("the storage is away")

    monkeypatch.setattr(JobRunner, "run_next", run_next)
    logging.getLogger("ray.serve").addHandler(caplog.handler)
    replica = JobsReplica(config)
    wait_until(lambda: len(looks) > 5)
    replica.check_health()
    replica.__del__()
    replica._thread.join(10)
    logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert caplog.text.count("the storage is away") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_serve_restarts_a_replica_whose_thread_has_ended(config: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobRunner, "run_next", lambda _: 1 / 0)
    replica = JobsReplica(config)
    replica._thread.join(10)
    with pytest.raises(RuntimeError, match="has ended"):
        replica.check_health()


def test_a_replica_that_stops_gives_its_job_back(config: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = JobQueue(config.storage)
    queue.add("spring", "pets@1", "a.csv", "alice")
    monkeypatch.setattr(JobRunner, "run_next", lambda self: self._queue.take(self._owner))
    replica = JobsReplica(config)
    wait_until(lambda: queue.all()[0].state == "running")
    replica._stopped.set()
    replica._thread.join(10)
    replica.__del__()
    assert queue.all()[0].owner == ""
    assert queue.take("another") is not None

"""The replica that runs jobs, one at a time. Serve restarts it when it dies; the storage holds the jobs."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from contextlib import suppress

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import StoreError
from cifar_ray.inference.batch.job_runner import JobRunner

_POLL_S = 2.0
# A low priority, but not the idle class of the job's workers: this process must answer Serve's health checks on a busy machine.
_NICENESS = 19

logger = logging.getLogger("ray.serve")


class JobsReplica:
    """The runner of jobs as a Serve deployment with one replica.

    Args:
        config: the server's settings.
    """

    def __init__(self, config: ServeConfig) -> None:
        os.nice(_NICENESS)
        self._runner = JobRunner(config, uuid.uuid4().hex)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run_forever, name="jobs", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Health check: Serve calls it, and restarts the replica if it raises.

        Raises:
            RuntimeError: if the thread that runs jobs has ended.
        """
        if not self._thread.is_alive():
            raise RuntimeError("the thread that runs jobs has ended")

    def __del__(self) -> None:
        """Release the job when Serve stops the replica, so that another server can take it before this one counts as failed."""
        self._stopped.set()
        with suppress(StoreError):
            self._runner.release()

    def _run_forever(self) -> None:
        problem = ""
        while not self._stopped.is_set():
            try:
                found, problem = self._runner.run_next(), ""
            except StoreError as error:
                found = None
                if str(error) != problem:
                    logger.warning("jobs cannot be read: %s", error)
                problem = str(error)
            if found is None:
                self._stopped.wait(_POLL_S)

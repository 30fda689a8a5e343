"""Run the prediction jobs of a server, one at a time, and resume them after a crash."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import BundleError, CifarRayError, ConfigError, DataError, StoreError, UnknownModelError
from cifar_ray.inference.batch.rows import PartSource
from cifar_ray.inference.batch.table import Part, PartFiles
from cifar_ray.jobs.job_queue import JobQueue
from cifar_ray.jobs.job_record import OUTPUTS, Job, JobLostError
from cifar_ray.jobs.job_sources import JobSources
from cifar_ray.jobs.name_files import NameFiles

if TYPE_CHECKING:
    from cifar_ray.inference.batch.model_job import ModelJob

# a crash or a cancellation loses at most one part for each worker
PART_SIZE = 500

_BEAT_S = 3.0
_PERMANENT = (ConfigError, DataError, BundleError, UnknownModelError)

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class JobPictures(PartSource):
    """The pictures of a job, for workers.

    Attributes:
        files: reads the names of the pictures.
        sources: reads the pictures.
    """

    files: NameFiles
    sources: JobSources

    def names(self, number: int) -> tuple[str, ...]:
        """Implements `PartSource`."""
        return self.files.names(number)

    def read(self, name: str) -> bytes:
        """Implements `PartSource`."""
        return self.sources.read(name)


class JobRunner:
    """Takes jobs from the queue in a storage and runs them.

    Args:
        config: settings of the server.
        owner: name of this runner; another runner may use the same name only after this runner has ended.
    """

    def __init__(self, config: ServeConfig, owner: str) -> None:
        self._config = config
        self._owner = owner
        self._queue = JobQueue(config.storage)
        self._sources = JobSources(config.storage, config.job_sources)

    def run_next(self) -> Job | None:
        """Run the next job to its end, or until it is cancelled or fails. Ray must be connected.

        Returns:
            The job, in the state in which it was taken; `None` if the queue was empty.

        Raises:
            StoreError: if the storage cannot be reached.
        """
        job = self._queue.take(self._owner)
        if job is None:
            self._queue.sweep()
            return None
        try:
            heartbeat = _Heartbeat(self._queue, job, self._owner)
            with heartbeat.beating():
                self._run(job, heartbeat)
            self._queue.finish(job.id, self._owner, "done")
        except JobLostError:
            logger.info("job %s was cancelled or taken over", job.id)
        except Exception as error:
            self._give_up(job, error)
        self._queue.sweep()
        return job

    def release(self) -> None:
        """Return the present job to the queue for another server, because this server stops.

        Raises:
            StoreError: if the storage cannot be reached.
        """
        self._queue.release(self._owner)

    def _run(self, job: Job, heartbeat: _Heartbeat) -> None:
        files = NameFiles(self._config.storage, f"{job.folder}/names")
        total, part_size = files.sizes() or (files.write(self._sources.pictures(job.source), PART_SIZE, heartbeat.check), PART_SIZE)
        if not total:
            raise DataError(f"{job.source}: no pictures found")
        parts = PartFiles(_inside(self._config.storage, f"{job.folder}/parts"), -(-total // part_size))
        missing = parts.missing()
        heartbeat.pictures = total
        for number in sorted({*range(-(-total // part_size))} - {*missing}):
            table = parts.table(number)
            heartbeat.add(len(table), len(table) - table["error"].null_count)
        if missing:
            for done in self._compute(job, [Part(number, ()) for number in missing], parts.folder, JobPictures(files, self._sources)):
                heartbeat.add(done["pictures"], done["broken"])
        self._join(job, parts)

    def _compute(self, job: Job, parts: list[Part], folder: str, pictures: JobPictures) -> Iterator[dict[str, int]]:
        from cifar_ray.cluster.plan import WorkerPlan
        from cifar_ray.inference.batch.classify_on_ray import classify_on_ray

        config = self._config
        plan = WorkerPlan(config.job_workers, config.cpus_per_job_worker, config.job_gpu)
        return classify_on_ray(self._model_job(job, plan.threads), parts, folder, plan, pictures, config.job_priority)

    def _model_job(self, job: Job, threads: int) -> ModelJob:
        from cifar_ray.inference.batch.model_job import ModelJob

        config = self._config
        return ModelJob(
            job.model,
            config.storage,
            job.top_k,
            config.precision,
            config.engine,
            abstain=config.abstain,
            may_use_gpu=config.job_gpu,
            decoding_threads=threads,
        )

    def _join(self, job: Job, parts: PartFiles) -> None:
        """Write the table; if another program has created a table of this name meanwhile, raise `ConfigError` instead."""
        job = self._queue.report(job.id, self._owner)
        if not job.has_begun_output and self._queue.has_output(job.output):
            raise ConfigError(f"a table {job.output!r} exists; choose another output")
        self._queue.report(job.id, self._owner, has_begun_output=True)
        parts.join(_inside(self._config.storage, f"{OUTPUTS}/{job.output}"))

    def _give_up(self, job: Job, error: Exception) -> None:
        """Fail the job after a permanent error, or retry it later after a transient error; finished parts stay."""
        problem = str(error).replace(self._config.storage, "the storage") if isinstance(error, CifarRayError) else ""
        try:
            if isinstance(error, _PERMANENT):
                self._queue.finish(job.id, self._owner, "failed", problem)
            else:
                logger.warning("job %s: %s", job.id, problem or "unexpected error", exc_info=None if problem else error)
                self._queue.retry_later(job.id, self._owner, problem or "internal error; the server's log has the details")
        except JobLostError:
            logger.info("job %s was cancelled or taken over", job.id)


class _Heartbeat:
    """Writes heartbeats with the progress of a running job, and detects that the job was cancelled or taken over.

    Attributes:
        pictures: number of pictures; `None` until they are listed.
    """

    def __init__(self, queue: JobQueue, job: Job, owner: str) -> None:
        self._queue, self._job, self._owner = queue, job, owner
        self._stopped, self._lost = threading.Event(), threading.Event()
        self.pictures: int | None = job.pictures
        self._done = self._broken = 0

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write heartbeats in a thread until the block ends; then write the final progress.

        Raises:
            JobLostError: at the end of the block, if the job was cancelled or taken over.
        """
        thread = threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()
        self._beat()

    def add(self, pictures: int, broken: int) -> None:
        """Count pictures whose rows are written, and how many of them are broken.

        Raises:
            JobLostError: if the job was cancelled or taken over.
        """
        self._done += pictures
        self._broken += broken
        self.check()

    def check(self, _: int = 0) -> None:
        """Check that this runner still owns the job.

        Raises:
            JobLostError: if the job was cancelled or taken over.
        """
        if self._lost.is_set():
            raise JobLostError(f"job {self._job.id} was cancelled or taken over")

    def _beat(self) -> None:
        self._queue.report(self._job.id, self._owner, pictures=self.pictures, done=self._done, broken=self._broken)

    def _beat_forever(self) -> None:
        while not self._stopped.wait(_BEAT_S):
            try:
                self._beat()
            except JobLostError:
                self._lost.set()
                return
            except StoreError as error:  # the next heartbeat may succeed
                logger.warning("job %s: its progress cannot be written: %s", self._job.id, error)


def _inside(storage: str, path: str) -> str:
    """A path or URI below the storage; the query of a URI stays at its end."""
    base, mark, query = storage.partition("?") if "://" in storage else (storage, "", "")
    return f"{base}/{path}{mark}{query}"

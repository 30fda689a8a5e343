"""The job queue of all servers on one storage, in one file: each change is atomic and durable."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ValidationError

from cifar_ray.errors import StoreError
from cifar_ray.jobs.job_record import FOLDER, OUTPUTS, Job, JobConflictError, JobLostError, QueueFullError, State, UnknownJobError
from cifar_ray.storage import FileTree

MAX_UNFINISHED = 100
# A server without a heartbeat for this long counts as failed, and another server takes over its job.
LEASE_S = 30.0
MAX_ATTEMPTS = 5

_MAX_FINISHED = 200
_FILE = "queue.json"
_FORMAT_VERSION = 1
_FIRST_PAUSE_S = 15.0


class _Content(BaseModel):
    format_version: int = _FORMAT_VERSION
    jobs: tuple[Job, ...] = ()


class JobQueue:
    """The jobs at `<storage>/jobs/queue.json`, in the order in which they were accepted.

    Args:
        storage: path or URI.
        timeout_s: as for `FileTree`.
        clock: returns the current time, UTC.

    Raises:
        StoreError: from every method, if the storage refuses the operation or cannot be reached.
    """

    def __init__(self, storage: str, timeout_s: float | None = None, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._storage = storage
        self._files = FileTree(storage, FOLDER, timeout_s)
        self._outputs = FileTree(storage, OUTPUTS, timeout_s)
        self._clock = clock

    def add(self, source: str, model: str, output: str, by: str, top_k: int = 5) -> Job:
        """Accept a job.

        Raises:
            JobConflictError: if the table exists, or an unfinished job writes it.
            QueueFullError: if 100 jobs are unfinished.
        """
        now = self._clock()
        job = Job(
            id=f"{now:%Y%m%d%H%M%S}-{secrets.token_hex(4)}", source=source, model=model, output=output, by=by, created_at=now, top_k=top_k
        )

        def change(jobs: Sequence[Job]) -> list[Job]:
            unfinished = [one for one in jobs if one.is_unfinished]
            if any(one.output == output for one in unfinished) or self.has_output(output):
                raise JobConflictError(f"a table {output!r} exists or is being written; choose another output")
            if len(unfinished) >= MAX_UNFINISHED:
                raise QueueFullError(f"{MAX_UNFINISHED} jobs are unfinished; try again later, or cancel some")
            finished = [one for one in jobs if not one.is_unfinished][-_MAX_FINISHED:]
            return [one for one in jobs if one.is_unfinished or one in finished] + [job]

        self._update(change)
        return job

    def all(self) -> list[Job]:
        """All jobs, the oldest first; `add` keeps only the last 200 finished jobs."""
        return list(self._parse(self._files.read(_FILE)).jobs)

    def get(self, job_id: str) -> Job:
        """Get a job by its id.

        Raises:
            UnknownJobError: if there is no such job.
        """
        return _find(self.all(), job_id)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that waits or runs; the server that runs it stops before its next part. A finished job stays unchanged.

        Raises:
            UnknownJobError: if there is no such job.
        """

        def change(job: Job) -> Job:
            return job.model_copy(update=self._end("cancelled", "")) if job.is_unfinished else job

        return self._change(job_id, change)

    def take(self, owner: str) -> Job | None:
        """Assign the next job to a server: one of its own, one of a failed server, or the first that waits; `None` if there is none."""
        now = self._clock()
        taken: list[Job] = []

        def change(jobs: Sequence[Job]) -> list[Job]:
            taken.clear()
            lost = [job for job in jobs if job.state == "running" and (job.owner in ("", owner) or _is_stale(job, now))]
            waiting = [job for job in jobs if job.state == "queued" and (job.not_before is None or job.not_before <= now)]
            chosen = next(iter([*lost, *waiting]), None)
            if chosen is None:
                return list(jobs)
            values = {"state": "running", "owner": owner, "seen_at": now, "started_at": chosen.started_at or now, "problem": ""}
            taken.append(chosen.model_copy(update=values))
            return _replaced(jobs, taken[0])

        if any(job.is_unfinished for job in self.all()):  # an idle server writes nothing
            self._update(change)
        return taken[0] if taken else None

    def report(self, job_id: str, owner: str, **progress: Any) -> Job:
        """Write the progress of a job, and a heartbeat.

        Args:
            job_id: id of a running job.
            owner: server that runs it.
            progress: changed attributes of `Job`.

        Raises:
            JobLostError: if the job was cancelled or taken over.
        """
        return self._change_own(job_id, owner, lambda _: progress)

    def finish(self, job_id: str, owner: str, state: State, problem: str = "") -> None:
        """End a running job.

        Raises:
            JobLostError: if the job was cancelled or taken over.
        """
        self._change_own(job_id, owner, lambda _: self._end(state, problem))

    def retry_later(self, job_id: str, owner: str, problem: str) -> None:
        """Put a job back into the queue after a transient error; the fifth attempt that fails ends it. Finished parts stay.

        Raises:
            JobLostError: if the job was cancelled or taken over.
        """

        def change(job: Job) -> dict[str, Any]:
            attempts = job.attempts + 1
            if attempts >= MAX_ATTEMPTS:
                return self._end("failed", problem) | {"attempts": attempts}
            pause = timedelta(seconds=_FIRST_PAUSE_S * 2**job.attempts)
            return {"state": "queued", "owner": "", "attempts": attempts, "problem": problem, "not_before": self._clock() + pause}

        self._change_own(job_id, owner, change)

    def release(self, owner: str) -> None:
        """Let other servers take the job of a server that stops."""

        def change(jobs: Sequence[Job]) -> list[Job]:
            return [job.model_copy(update={"owner": ""}) if job.owner == owner and job.state == "running" else job for job in jobs]

        self._update(change)

    def has_output(self, output: str) -> bool:
        """Whether a table exists."""
        return self._outputs.have_files([output])[0]

    def sweep(self) -> None:
        """Delete the name files and parts of finished jobs."""
        folders = self._files.folders()  # listed before the queue is read: a job may be accepted in between, and its folder must stay
        kept = {job.id for job in self.all() if job.is_unfinished}
        for folder in folders:
            if folder not in kept:
                FileTree(self._storage, f"{FOLDER}/{folder}").remove()

    def _change_own(self, job_id: str, owner: str, change: Callable[[Job], dict[str, Any]]) -> Job:
        def checked(job: Job) -> Job:
            if job.state != "running" or job.owner != owner:
                raise JobLostError(f"job {job_id} was cancelled or taken over")
            return job.model_copy(update={"seen_at": self._clock()} | change(job))

        return self._change(job_id, checked)

    def _end(self, state: State, problem: str) -> dict[str, Any]:
        return {"state": state, "problem": problem, "finished_at": self._clock(), "owner": ""}

    def _change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        jobs = self._update(lambda jobs: _replaced(jobs, change(_find(jobs, job_id))))
        return _find(jobs, job_id)

    def _update(self, change: Callable[[Sequence[Job]], list[Job]]) -> Sequence[Job]:
        def change_bytes(data: bytes | None) -> bytes:
            return _Content(jobs=tuple(change(self._parse(data).jobs))).model_dump_json(indent=1).encode()

        return self._parse(self._files.update(_FILE, change_bytes)).jobs

    def _parse(self, data: bytes | None) -> _Content:
        if data is None:
            return _Content()
        try:
            content = _Content.model_validate_json(data)
        except ValidationError:
            raise StoreError(f"{self._files.path(_FILE)} is damaged; restore it, or delete it: then all jobs are forgotten") from None
        if content.format_version > _FORMAT_VERSION:
            raise StoreError(f"{self._files.path(_FILE)} was written by a newer release; install that one")
        return content


def _find(jobs: Sequence[Job], job_id: str) -> Job:
    for job in jobs:
        if job.id == job_id:
            return job
    raise UnknownJobError(f"job {job_id[:40]!r} not found. GET /jobs lists the jobs")


def _replaced(jobs: Sequence[Job], changed: Job) -> list[Job]:
    return [changed if job.id == changed.id else job for job in jobs]


def _is_stale(job: Job, now: datetime) -> bool:
    return job.seen_at is None or now - job.seen_at > timedelta(seconds=LEASE_S)

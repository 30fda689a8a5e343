"""The record of a prediction job: its request, its state and its progress."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cifar_ray.errors import CifarRayError

State = Literal["queued", "running", "done", "failed", "cancelled"]
UNFINISHED: tuple[State, ...] = ("queued", "running")

FOLDER = "jobs"
# Folder of the tables of all jobs
OUTPUTS = "predictions"
OUTPUT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(csv|parquet)$"
ID_PATTERN = r"[0-9]{14}-[0-9a-f]{8}"


class UnknownJobError(CifarRayError):
    """There is no such job, or it was removed from the queue."""


class JobConflictError(CifarRayError):
    """The table exists already, or another job writes it."""


class QueueFullError(CifarRayError):
    """Too many jobs wait."""


class JobLostError(CifarRayError):
    """The job was cancelled, or another server has taken it over: this server must stop working on it."""


class Job(BaseModel):
    """A job and its progress.

    Attributes:
        id: unique identifier, which matches `ID_PATTERN`.
        source: pictures, as the client named them; see `JobSources`.
        model: `name@version`, fixed when the job was accepted.
        output: file name of the table, in `<storage>/predictions/`.
        by: holder of the API key.
        created_at: when it was accepted, UTC.
        state: queued, running, done, failed or cancelled.
        top_k: number of classes per row.
        started_at: when it started for the first time.
        finished_at: when it was done, failed or was cancelled.
        pictures: number of pictures; `None` until they are listed.
        done: number of pictures whose rows are written.
        broken: number of these pictures that cannot be read or decoded; their rows have an error.
        problem: why it failed, or why it waits for another attempt.
        attempts: number of failed attempts.
        not_before: time before which the next attempt must not start; `None` if it may start at once.
        owner: the server that runs it; empty if none does.
        seen_at: time of the owner's last heartbeat.
        has_begun_output: whether the job has begun to write its table; only then may it replace a table of this name.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    source: str
    model: str
    output: str
    by: str
    created_at: datetime
    state: State = "queued"
    top_k: int = 5
    started_at: datetime | None = None
    finished_at: datetime | None = None
    pictures: int | None = None
    done: int = 0
    broken: int = 0
    problem: str = ""
    attempts: int = 0
    not_before: datetime | None = None
    owner: str = ""
    seen_at: datetime | None = None
    has_begun_output: bool = False

    @property
    def folder(self) -> str:
        """Folder of the job's name files and parts, relative to the storage."""
        return f"{FOLDER}/{self.id}"

    @property
    def is_unfinished(self) -> bool:
        """Whether it waits or runs."""
        return self.state in UNFINISHED

"""Routes for jobs: start, list, show and cancel them. They write to the queue in the storage; a separate replica runs the jobs."""

from __future__ import annotations

import asyncio

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cifar_ray.config.base import REFERENCE_PATTERN
from cifar_ray.errors import ConfigError, DataError, UnknownModelError
from cifar_ray.jobs.job_queue import JobQueue
from cifar_ray.jobs.job_record import OUTPUT_PATTERN, Job
from cifar_ray.jobs.job_sources import JobSources
from cifar_ray.store.aliases import PRODUCTION
from cifar_ray.store.registry import LATEST
from deployments.http.access import require_scope
from deployments.http.handlers import Api
from deployments.http.operation import Operation
from deployments.http.responses import Json
from deployments.http.review_routes import JsonBody, json_body, read_body
from deployments.predicting import schemas
from deployments.predicting.contract import StoredModel

_EXAMPLE: schemas.JobEntry = {
    "id": "20261129093000-5f3a9c1e",
    "state": "running",
    "source": "spring",
    "model": "cifar10@1",
    "output": "spring.parquet",
    "by": "alice",
    "created_at": "2026-11-29T09:30:00+00:00",
    "started_at": "2026-11-29T09:30:02+00:00",
    "finished_at": None,
    "pictures": 20000,
    "done": 4500,
    "broken": 2,
    "problem": None,
}
_MAY_NOT = {403: "jobs are off on this server (jobs=true), it has no API keys, or the scope of this key is neither jobs nor admin"}
_GONE = {404: "there is no such job"}
_AWAY = {503: "the storage cannot be reached, or too many jobs are unfinished"}
_ID = ({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": "as in the answer of POST /jobs"},)

JOB_OPERATIONS = (
    Operation(
        "/jobs",
        "Predict many pictures beside the server; the table is in the storage's folder predictions",
        schemas.JobEntry,
        """-H 'X-API-Key: KEY' -d '{{"source": "spring", "output": "spring.parquet"}}' {}""",
        json_body(
            {
                "source": "folder, list (.txt) or picture in the storage's folder inputs, or an address that the operator allows",
                "output": "name of the table, .parquet or .csv",
                "model": "NAME or NAME@VERSION; default: the server's default model",
                "top_k": "number of classes in a row",
            },
            {"source": "spring", "output": "spring.parquet"},
        ),
        {
            400: "the body is not as expected, or the source is not allowed",
            404: "model not found",
            409: "a table of this name exists, or another job writes it",
            413: "the body is over 10 kB",
        }
        | _MAY_NOT
        | _AWAY,
        method="post",
        example=_EXAMPLE,
    ),
    Operation(
        "/jobs", "List jobs, the newest first", schemas.JobsAnswer, "-H 'X-API-Key: KEY' {}", errors=_MAY_NOT | _AWAY, method="get",
        example={"jobs": [_EXAMPLE]},
    ),
    Operation(
        "/jobs/{id}", "Show how far a job is", schemas.JobEntry, "-H 'X-API-Key: KEY' {}", errors=_MAY_NOT | _GONE | _AWAY,
        parameters=_ID, method="get", example=_EXAMPLE,
    ),
    Operation(
        "/jobs/{id}", "Cancel a job; a finished one stays as it is", schemas.JobEntry, "-X DELETE -H 'X-API-Key: KEY' {}",
        errors=_MAY_NOT | _GONE | _AWAY, parameters=_ID, method="delete", example=_EXAMPLE | {"state": "cancelled"},
    ),
)  # fmt: skip


class _JobBody(JsonBody):
    source: str = Field(min_length=1, max_length=1000)
    output: str = Field(pattern=OUTPUT_PATTERN)
    model: str | None = Field(None, pattern=REFERENCE_PATTERN)
    top_k: int = Field(5, ge=1, le=1000)


class JobApi:
    """Handlers of the routes.

    Args:
        api: the other handlers of the server.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._queue = JobQueue(api.config.storage, timeout_s=0)
        self._sources = JobSources(api.config.storage, api.config.job_sources)

    @property
    def routes(self) -> list[Route]:
        """The routes of these handlers."""
        return [
            Route("/jobs", self.start, methods=["POST"]),
            Route("/jobs", self.list),
            Route("/jobs/{id}", self.show),
            Route("/jobs/{id}", self.cancel, methods=["DELETE"]),
        ]

    async def start(self, request: Request) -> Response:
        """`POST /jobs`: put a job into the queue."""
        who = self._require(request)
        sent = await self._api.read(request, lambda one: read_body(one, _JobBody))
        try:
            await asyncio.to_thread(self._sources.check, sent.source)
        except (ConfigError, DataError) as error:
            raise HTTPException(400, f"source: {error}") from None
        model = await self._resolve(self._api.resolve_alias(sent.model))
        return Json(_entry(await asyncio.to_thread(self._queue.add, sent.source, model, sent.output, who, sent.top_k)))

    async def list(self, request: Request) -> Response:
        """`GET /jobs`: the unfinished jobs and the last finished ones."""
        self._require(request)
        answer: schemas.JobsAnswer = {"jobs": [_entry(job) for job in reversed(await asyncio.to_thread(self._queue.all))]}
        return Json(answer)

    async def show(self, request: Request) -> Response:
        """`GET /jobs/ID`: the progress of a job."""
        self._require(request)
        return Json(_entry(await asyncio.to_thread(self._queue.get, request.path_params["id"])))

    async def cancel(self, request: Request) -> Response:
        """`DELETE /jobs/ID`: cancel a job."""
        self._require(request)
        return Json(_entry(await asyncio.to_thread(self._queue.cancel, request.path_params["id"])))

    def _require(self, request: Request) -> str:
        if not self._api.config.jobs:
            raise HTTPException(403, "jobs are off on this server; its operator switches them on with jobs=true")
        return require_scope(request, "jobs")

    async def _resolve(self, reference: str | None) -> str:
        """Resolve a reference to `name@version` now, so that a later promotion does not change the model of the job."""
        if reference is None:
            return (await self._api.pipeline.model(None)).reference
        stored = await self._api.classifier.models()
        name, _, selector = reference.partition("@")
        version = next((_version(model, selector) for model in stored if model.name == name), None)
        if version is None:
            available = ", ".join(f"{model.name}@{number}" for model in stored for number in model.versions)
            raise UnknownModelError(f"model {reference[:100]!r} not found. Available: {available or 'none'}")
        return f"{name}@{version}"


def _version(model: StoredModel, selector: str) -> int | None:
    known = {str(version): version for version in model.versions} | {LATEST: max(model.versions, default=0)} | model.aliases
    return known.get(selector) if selector else known.get(PRODUCTION, known[LATEST]) or None


def _entry(job: Job) -> schemas.JobEntry:
    return {
        "id": job.id,
        "state": job.state,
        "source": job.source,
        "model": job.model,
        "output": job.output,
        "by": job.by,
        "created_at": job.created_at.isoformat(timespec="seconds"),
        "started_at": job.started_at.isoformat(timespec="seconds") if job.started_at else None,
        "finished_at": job.finished_at.isoformat(timespec="seconds") if job.finished_at else None,
        "pictures": job.pictures,
        "done": job.done,
        "broken": job.broken,
        "problem": job.problem or None,
    }

"""The handlers of the routes over a `Classifier`; they do not use Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cifar_ray.captures.capture_files import Captures
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.drift.windows import WindowWriter
from cifar_ray.errors import ImageError
from deployments.capturing.recorder import Recorder
from deployments.http import uploads
from deployments.http.access import KeyRing, holder, route_path
from deployments.http.body_budget import BodiesTooLargeError
from deployments.http.rate_limits import RateLimiter, TokenBuckets
from deployments.http.responses import (
    PROBLEM_FORM,
    ErrorForm,
    Json,
    LastJson,
    explanation,
    explanation_png,
    prediction,
    problem,
    revalidated,
)
from deployments.predicting import schemas
from deployments.predicting.contract import Classifier, DeadlineError, Observer, Picture, Status, UnavailableError
from deployments.predicting.pipeline import Deadline, Outcome, OverloadedError, Pipeline
from deployments.predicting.sender import Sender
from deployments.staging.staged_pipeline import StagedPipeline
from deployments.staging.trials import NoTrials, Trials

RETRY_AFTER_S = 2
EXPLANATION_FORMATS = ("png", "json")

Sent = TypeVar("Sent")


class Api:
    """Handlers of the routes.

    Args:
        classifier: runs the models.
        config: defaults and limits.
        observer: receives request events.
        limiter: holds the rate limits of the API keys; default: in this process.
        trials: the versions on trial; default: none.
        windows: counts answers for drift detection; default: answers are not counted.
        error_forms: forms of errors other than problem documents, by the first part of a path.
    """

    def __init__(
        self,
        classifier: Classifier,
        config: ServeConfig,
        observer: Observer,
        limiter: RateLimiter | None = None,
        trials: Trials | None = None,
        windows: WindowWriter | None = None,
        error_forms: Mapping[str, ErrorForm] = MappingProxyType({}),
    ) -> None:
        self.classifier = classifier
        self.config = config
        self.keys = KeyRing(config.api_keys, limiter or TokenBuckets()) if config.api_keys else None
        self.captures = Captures(config.storage, timeout_s=0)
        self.pipeline = Pipeline(classifier, config, observer)
        self._observer = observer
        self._windows = windows
        self._error_forms = error_forms
        self._recorder = Recorder(config, self.captures)
        differed = partial(self._recorder.offer, disagrees=True)
        self._staged = StagedPipeline(self.pipeline, trials or NoTrials(), config, observer, differed)

    async def predict(self, request: Request) -> Response:
        """`POST /predict` and `POST /predict_base64`; clients of the latter send base64 text."""
        top_k = self.top_k(request)
        sent = await self.read(request, uploads.read_picture)
        outcome = await self.classify([sent.data], self.resolve_alias(sent.model), request.headers, holder(request))
        [row] = outcome.rows
        if isinstance(row, ImageError):
            raise row
        answer: schemas.PredictAnswer = {
            "model": outcome.model.name,
            "version": outcome.model.version,
            **prediction(outcome.model, row, top_k),
            "timings_ms": outcome.timings_ms,
        }
        return Json(answer, headers={"X-Model": outcome.model.reference})

    async def predict_batch(self, request: Request) -> Response:
        """`POST /predict_batch`."""
        top_k = self.top_k(request)
        sent = await self.read(request, uploads.read_pictures)
        outcome = await self.classify(
            [picture.data for picture in sent.pictures], self.resolve_alias(sent.model), request.headers, holder(request)
        )
        predictions: list[schemas.BatchPrediction | schemas.BatchFailure] = []
        for index, (picture, row) in enumerate(zip(sent.pictures, outcome.rows, strict=True)):
            if isinstance(row, ImageError):
                predictions.append({"index": index, "filename": picture.filename, "error": problem(picture.error or row)})
            else:
                predictions.append({"index": index, "filename": picture.filename, **prediction(outcome.model, row, top_k)})
        answer: schemas.BatchAnswer = {
            "model": outcome.model.name,
            "version": outcome.model.version,
            "predictions": predictions,
            "num_failed": sum(isinstance(row, ImageError) for row in outcome.rows),
            "timings_ms": outcome.timings_ms,
        }
        return Json(answer, headers={"X-Model": outcome.model.reference})

    async def explain(self, request: Request) -> Response:
        """`POST /explain`."""
        image_format = request.query_params.get("format", "png")
        if image_format not in EXPLANATION_FORMATS:
            raise HTTPException(400, f"format: expected {' or '.join(EXPLANATION_FORMATS)}, got {image_format[:20]!r}")
        sent = await self.read(request, uploads.read_picture)
        pixels, explained = await self.pipeline.explain(
            sent.data, self.resolve_alias(sent.model), request.query_params.get("class") or None
        )
        if image_format == "json":
            return Json(explanation(explained))
        return await asyncio.to_thread(explanation_png, pixels, explained)

    async def health(self, _: Request) -> Response:
        """`GET /health`: the process runs."""
        answer: schemas.Health = {"status": "ok"}
        return Json(answer)

    async def ready(self, _: Request) -> Response:
        """`GET /ready`: a model is available."""
        model = await self.pipeline.model(None)
        answer: schemas.Ready = {"status": "ready", "model": model.name, "version": model.version}
        return Json(answer)

    async def classes(self, request: Request) -> Response:
        """`GET /classes`."""
        model = await self.pipeline.model(self.resolve_alias(uploads.model_in_query(request)))
        answer: schemas.Classes = {"model": model.name, "version": model.version, "task": model.task, "classes": list(model.class_names)}
        return Json(answer)

    async def models(self, _: Request) -> Response:
        """`GET /models`."""
        stored, status = await asyncio.gather(self.classifier.models(), self.classifier.status())
        entries: list[schemas.ModelEntry] = [
            {
                "name": model.name,
                "versions": list(model.versions),
                "aliases": model.aliases,
                "classes": list(model.class_names),
                "class_descriptions": dict(model.class_descriptions),
                "task": model.task,
                "test_accuracy": model.test_accuracy,
                "test_map": model.test_map,
                "loaded": [{"version": loaded.version, "engine": loaded.engine, "precision": loaded.precision} for loaded in model.loaded],
                "problem": model.problem or None,
            }
            for model in stored
        ]
        answer: schemas.Models = {
            "default": status.model.reference if status.model else None,
            "models": entries,
            "problem": status.problem or None,
        }
        return Json(answer)

    async def gallery(self, request: Request) -> Response:
        """`GET /gallery`: the model's mistakes."""
        if not self.config.gallery:
            raise HTTPException(403, "the gallery is disabled on this server (gallery=false)")
        found = await self.classifier.gallery(self.resolve_alias(uploads.model_in_query(request)))
        if isinstance(found, Status):
            found.require()
            raise UnavailableError(found.problem)
        # the gallery is sent as stored; the store has checked its bundle
        head = Json({"model": found.name, "version": found.version}).body
        content = b'%s,"gallery":%s}' % (bytes(head)[:-1], found.content or b"null")
        return revalidated(request, Response(content, media_type="application/json"))

    async def refuse(self, request: Request, error: Exception) -> Response:
        """The response for an error."""
        content = self.counted(error)
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if content["status"] == 404 and isinstance(error, HTTPException):
            content["detail"] = f"{request.url.path} not found; see /docs for all routes"
        elif content["status"] == 405:
            content["detail"] = f"method {request.method} is not allowed. Allowed: {headers.get('Allow', 'none')}"
        elif content["status"] == 503:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        kind = LastJson if isinstance(error, uploads.BodyTooLargeError | BodiesTooLargeError) else Json
        form = self._error_forms.get(route_path(request.scope).lstrip("/").partition("/")[0], PROBLEM_FORM)
        return kind(form.fill(content), content["status"], headers, media_type=form.media_type)

    def counted(self, error: Exception) -> schemas.Problem:
        """An error as a problem document; counts it in the metrics."""
        content = problem(error)
        self._observer.refused("Overloaded" if isinstance(error, OverloadedError) else content["title"])
        return content

    async def read(self, request: Request, read: Callable[[Request], Awaitable[Sent]]) -> Sent:
        """Read a request with the function `read`, if the queue has room, within the time limit.

        Raises:
            OverloadedError: if the queue is full; nothing is read.
            HTTPException: 408 if it takes longer than `request_timeout_s`.
        """
        self.pipeline.check_room()
        try:
            async with Deadline(self.config.request_timeout_s, "the request did not arrive"):
                return await read(request)
        except DeadlineError as error:
            raise HTTPException(408, str(error)) from None

    def resolve_alias(self, model: str | None) -> str | None:
        """Replace an alias that the operator configured by its model; other references stay unchanged."""
        return None if model is None else self.config.model_aliases.get(model, model)

    async def classify(
        self, pictures: Sequence[Picture], model_reference: str | None, headers: Mapping[str, str], key_holder: str | None
    ) -> Outcome:
        """Classify the pictures of a request, and capture some of them if the operator enabled this.

        Args:
            pictures: pictures of the request.
            model_reference: the model; `None` for the default model.
            headers: headers of the request, case-insensitive. They may hold its id, and name the client: one version answers each client.
            key_holder: holder of the API key; the client if the headers name none.

        Raises:
            CifarRayError: as `StagedPipeline.run`.
        """
        sender = Sender(headers, self.config.client_header, key_holder)
        outcome = await self._staged.run(pictures, model_reference, sender)
        self._recorder.offer(sender, pictures, outcome)
        if self._windows:
            model = outcome.model
            self._windows.count(model.reference, model.class_names, outcome.answer.probabilities, outcome.num_abstained, model.rules)
        return outcome

    def top_k(self, request: Request) -> int:
        """Number of most likely classes that a request asks for; default: from the config.

        Raises:
            HTTPException: 400 if it is not a positive whole number.
        """
        text = request.query_params.get("top_k")
        if text is None:
            return self.config.top_k
        if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1):
            raise HTTPException(400, f"top_k: expected a whole number of at least 1, got {text[:20]!r}")
        return int(text[:9])

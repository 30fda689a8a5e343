"""The routes, as a plain Starlette app over a `Classifier`; it does not use Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cifar_ray.captures.capture_files import Captures
from cifar_ray.captures.reviews import Reviews
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.drift.windows import WindowWriter
from cifar_ray.errors import ImageError
from deployments.capturing.recorder import Recorder, request_id
from deployments.http import home_page, openapi, uploads
from deployments.http.access import KeyGuard, KeyRing, SecurityHeaders, holder
from deployments.http.body_budget import BodiesTooLargeError, BodyBudget
from deployments.http.rate_limits import RateLimiter, TokenBuckets
from deployments.http.responses import STATUS_TABLE, Json, LastJson, explanation, explanation_png, prediction, problem, revalidated
from deployments.http.review_routes import ReviewApi
from deployments.pages import docs_page
from deployments.predicting import schemas
from deployments.predicting.contract import Classifier, DeadlineError, Observer, Status, UnavailableError
from deployments.predicting.pipeline import Deadline, Outcome, OverloadedError, Pipeline
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
        trials: the versions on trial.
        captures: where answered pictures are kept.
        windows: counts answers; `None` counts none.
    """

    def __init__(
        self,
        classifier: Classifier,
        config: ServeConfig,
        observer: Observer,
        trials: Trials,
        captures: Captures,
        windows: WindowWriter | None,
    ) -> None:
        self._classifier = classifier
        self._config = config
        self._observer = observer
        self._pipeline = Pipeline(classifier, config, observer)
        self._windows = windows
        self._recorder = Recorder(config, captures)
        differed = partial(self._recorder.offer, disagrees=True)
        self._staged = StagedPipeline(self._pipeline, trials, config, observer, differed)

    async def predict(self, request: Request) -> Response:
        """`POST /predict` and `POST /predict_base64`; clients of the latter send base64 text."""
        top_k = self._top_k(request)
        sent = await self._read(request, uploads.read_picture)
        outcome = await self._classify(request, [sent.data], sent.model)
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
        top_k = self._top_k(request)
        sent = await self._read(request, uploads.read_pictures)
        outcome = await self._classify(request, [picture.data for picture in sent.pictures], sent.model)
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
        sent = await self._read(request, uploads.read_picture)
        pixels, explained = await self._pipeline.explain(sent.data, self._meant(sent.model), request.query_params.get("class") or None)
        if image_format == "json":
            return Json(explanation(explained))
        return await asyncio.to_thread(explanation_png, pixels, explained)

    async def health(self, _: Request) -> Response:
        """`GET /health`: the process runs."""
        answer: schemas.Health = {"status": "ok"}
        return Json(answer)

    async def ready(self, _: Request) -> Response:
        """`GET /ready`: a model is available."""
        model = await self._pipeline.model(None)
        answer: schemas.Ready = {"status": "ready", "model": model.name, "version": model.version}
        return Json(answer)

    async def classes(self, request: Request) -> Response:
        """`GET /classes`."""
        model = await self._pipeline.model(self._meant(uploads.model_in_query(request)))
        answer: schemas.Classes = {"model": model.name, "version": model.version, "task": model.task, "classes": list(model.class_names)}
        return Json(answer)

    async def models(self, _: Request) -> Response:
        """`GET /models`."""
        stored, status = await asyncio.gather(self._classifier.models(), self._classifier.status())
        entries: list[schemas.ModelEntry] = [
            {
                "name": model.name,
                "versions": list(model.versions),
                "aliases": model.aliases,
                "classes": list(model.class_names),
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
        if not self._config.gallery:
            raise HTTPException(403, "the gallery is disabled on this server (gallery=false)")
        found = await self._classifier.gallery(self._meant(uploads.model_in_query(request)))
        if isinstance(found, Status):
            found.require()
            raise UnavailableError(found.problem)
        # the gallery is sent as stored; the store has checked its bundle
        head = Json({"model": found.name, "version": found.version}).body
        content = b'%s,"gallery":%s}' % (bytes(head)[:-1], found.content or b"null")
        return revalidated(request, Response(content, media_type="application/json"))

    async def refuse(self, request: Request, error: Exception) -> Response:
        """The response for an error."""
        content = problem(error)
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if content["status"] == 404 and isinstance(error, HTTPException):
            content["detail"] = f"{request.url.path} not found; see /docs for all routes"
        elif content["status"] == 405:
            content["detail"] = f"method {request.method} is not allowed. Allowed: {headers.get('Allow', 'none')}"
        elif content["status"] == 503:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        self._observer.refused("Overloaded" if isinstance(error, OverloadedError) else content["title"])
        kind = LastJson if isinstance(error, uploads.BodyTooLargeError | BodiesTooLargeError) else Json
        return kind(content, content["status"], headers, media_type="application/problem+json")

    async def _read(self, request: Request, read: Callable[[Request], Awaitable[Sent]]) -> Sent:
        self._pipeline.check_room()
        try:
            async with Deadline(self._config.request_timeout_s, "the request did not arrive"):
                return await read(request)
        except DeadlineError as error:
            raise HTTPException(408, str(error)) from None

    def _meant(self, model: str | None) -> str | None:
        """The model that a request means, with the operator's aliases."""
        return None if model is None else self._config.model_aliases.get(model, model)

    async def _classify(self, request: Request, pictures: Sequence[bytes], model: str | None) -> Outcome:
        identity = request_id(request.headers.get("X-Request-Id"))
        outcome = await self._staged.run(pictures, self._meant(model), identity, self._client(request))
        self._recorder.offer(identity, pictures, outcome)
        if self._windows:
            self._windows.count(outcome.model.reference, outcome.predicted, *outcome.confidences)
        return outcome

    def _client(self, request: Request) -> str | None:
        """Whoever asks: the value of a header that the operator has chosen, else the holder of the API key."""
        return request.headers.get(self._config.client_header) or holder(request)

    def _top_k(self, request: Request) -> int:
        text = request.query_params.get("top_k")
        if text is None:
            return self._config.top_k
        if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1):
            raise HTTPException(400, f"top_k: expected a whole number of at least 1, got {text[:20]!r}")
        return int(text[:9])


def create_app(
    classifier: Classifier,
    config: ServeConfig,
    observer: Observer,
    limiter: RateLimiter | None = None,
    trials: Trials | None = None,
    windows: WindowWriter | None = None,
) -> Starlette:
    """The app with all routes; every error is `application/problem+json` (RFC 9457).

    Args:
        classifier: runs the models.
        config: defaults and limits.
        observer: receives request events.
        limiter: holds the rate limits of the API keys; default: in this process.
        trials: the versions on trial; default: none.
        windows: counts answers, for drift; default: nobody does.
    """
    captures = Captures(config.storage, timeout_s=0)
    api, document = Api(classifier, config, observer, trials or NoTrials(), captures, windows), openapi.document()
    docs, front = docs_page.render(document), home_page.render(has_reviews=config.api_keys is not None)

    async def answer_document(_: Request) -> Response:
        return Json(document)

    async def answer_docs(_: Request) -> Response:
        return HTMLResponse(docs)

    routes = [
        Route("/predict", api.predict, methods=["POST"]),
        Route("/predict_base64", api.predict, methods=["POST"]),
        Route("/predict_batch", api.predict_batch, methods=["POST"]),
        Route("/explain", api.explain, methods=["POST"]),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/classes", api.classes),
        Route("/models", api.models),
        Route("/gallery", api.gallery),
        *ReviewApi(captures, Reviews(config.storage, timeout_s=0)).routes,
        Route("/openapi.json", answer_document),
        Route("/docs", answer_docs),
        *home_page.routes(front),
    ]
    app = Starlette(
        routes=routes,
        middleware=[*_access_middleware(api, config, limiter or TokenBuckets()), Middleware(BodyBudget, max_bytes=config.max_body_bytes)],
        exception_handlers=dict.fromkeys((HTTPException, *(row[0] for row in STATUS_TABLE)), api.refuse),
    )
    # outermost, so that the response to an unexpected error has these headers too
    app.middleware_stack = SecurityHeaders(app.build_middleware_stack(), {"/": front, "/docs": docs})
    return app


def _access_middleware(api: Api, config: ServeConfig, limiter: RateLimiter) -> list[Middleware]:
    """Middleware for CORS and API keys, outermost first; empty by default."""
    middleware = []
    if config.cors_origins:  # before the keys: a browser sends its preflight request without one
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],  # those of tracing and of proxies, too: they give no rights
                expose_headers=["Retry-After", "X-Class-Id", "X-Class-Name", "X-Model", "X-Request-Id"],
            )
        )
    if config.api_keys:
        middleware.append(Middleware(KeyGuard, keys=KeyRing(config.api_keys, limiter), refuse=api.refuse))
    return middleware

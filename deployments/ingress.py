"""The HTTP side, as a plain Starlette app over a `Classifier`: it knows nothing of Ray."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus

import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from cifar_ray.errors import CifarRayError, ImageError, ImageTooLargeError
from cifar_ray.inference.preprocess import preprocess
from deployments import docs_page, openapi, schemas, uploads
from deployments.config import ServeConfig
from deployments.contract import Classified, Classifier, ModelInfo, Status, UnavailableError

# The first row that fits an error is its answer, so subclasses come first.
STATUS_TABLE: tuple[tuple[type[Exception], int], ...] = (
    (ImageTooLargeError, 413),
    (ImageError, 422),
    (UnavailableError, 503),
    (ClientDisconnect, 400),
    (Exception, 500),
)
RETRY_AFTER_S = 2

# A picture of 50 megapixels takes 150 MB and more while it is decoded.
_DECODE_THREADS = min(8, os.cpu_count() or 1)
# The model may change between decoding and classifying.
_ATTEMPTS = 3

Pixels = npt.NDArray[np.uint8]
Row = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the pictures of one request.

    Attributes:
        model: the one that answered.
        rows: for each picture its probabilities, float32 `[C]`, or why there are none.
        timings_ms: where the time went.
    """

    model: ModelInfo
    rows: list[Row | ImageError]
    timings_ms: schemas.Timings


class Api:
    """The routes.

    Args:
        classifier: answers for the model.
        config: defaults and limits.
    """

    def __init__(self, classifier: Classifier, config: ServeConfig) -> None:
        self._classifier = classifier
        self._config = config
        self._decoders = ThreadPoolExecutor(_DECODE_THREADS, "decode")
        # The last model heard of; an answer by another one replaces it, so nothing needs to be polled.
        self._model: ModelInfo | None = None

    async def predict(self, request: Request) -> Response:
        """`POST /predict`."""
        return await self._predict_one(request, uploads.read_picture)

    async def predict_base64(self, request: Request) -> Response:
        """`POST /predict_base64`."""
        return await self._predict_one(request, uploads.read_json_picture)

    async def predict_batch(self, request: Request) -> Response:
        """`POST /predict_batch`."""
        top_k = self._top_k(request)
        pictures = await uploads.read_pictures(request)
        outcome = await self._run([picture.data for picture in pictures])
        predictions: list[schemas.BatchPrediction | schemas.BatchFailure] = []
        for index, (picture, row) in enumerate(zip(pictures, outcome.rows, strict=True)):
            if isinstance(row, ImageError):
                predictions.append({"index": index, "filename": picture.filename, "error": problem(row)})
            else:
                predictions.append({"index": index, "filename": picture.filename, **prediction(outcome.model, row, top_k)})
        answer: schemas.BatchAnswer = {
            "model": outcome.model.name,
            "version": outcome.model.version,
            "predictions": predictions,
            "num_failed": sum(isinstance(row, ImageError) for row in outcome.rows),
            "timings_ms": outcome.timings_ms,
        }
        return JSONResponse(answer)

    async def health(self, _: Request) -> Response:
        """`GET /health`: this process lives."""
        answer: schemas.Health = {"status": "ok"}
        return JSONResponse(answer)

    async def ready(self, _: Request) -> Response:
        """`GET /ready`: a model answers."""
        model = await self._ask_model()
        answer: schemas.Ready = {"status": "ready", "model": model.name, "version": model.version}
        return JSONResponse(answer)

    async def classes(self, _: Request) -> Response:
        """`GET /classes`."""
        model = await self._ask_model()
        answer: schemas.Classes = {"model": model.name, "version": model.version, "classes": list(model.class_names)}
        return JSONResponse(answer)

    async def models(self, _: Request) -> Response:
        """`GET /models`."""
        stored, status = await asyncio.gather(self._classifier.models(), self._classifier.status())
        answer: schemas.Models = {
            "models": [
                {"name": model.name, "versions": list(model.versions), "aliases": model.aliases, "loaded": model.loaded} for model in stored
            ],
            "problem": status.problem or None,
        }
        return JSONResponse(answer)

    async def _predict_one(self, request: Request, read: Callable[[Request], Awaitable[bytes]]) -> Response:
        top_k = self._top_k(request)
        outcome = await self._run([await read(request)])
        [row] = outcome.rows
        if isinstance(row, ImageError):
            raise row
        answer: schemas.PredictAnswer = {
            "model": outcome.model.name,
            "version": outcome.model.version,
            **prediction(outcome.model, row, top_k),
            "timings_ms": outcome.timings_ms,
        }
        return JSONResponse(answer)

    async def _ask_model(self) -> ModelInfo:
        status = await self._classifier.status()
        if status.model is None:
            raise UnavailableError(status.problem)
        return status.model

    async def _run(self, pictures: Sequence[bytes]) -> Outcome:
        started = time.perf_counter()
        model = self._model or await self._ask_model()
        for _ in range(_ATTEMPTS):
            decoding = time.perf_counter()
            decoded = await asyncio.gather(*(self._decode(data, model) for data in pictures))
            waiting = time.perf_counter()
            answer = await self._classify([pixels for pixels in decoded if not isinstance(pixels, ImageError)], model)
            ended = time.perf_counter()
            self._model = answer.model
            if isinstance(answer, Classified):
                rows = iter(answer.probabilities)
                timings: schemas.Timings = {
                    "decode": _ms(waiting - decoding),
                    "queue": _ms(ended - waiting - answer.inference_s),
                    "inference": _ms(answer.inference_s),
                    "total": _ms(ended - started),
                }
                return Outcome(answer.model, [pixels if isinstance(pixels, ImageError) else next(rows) for pixels in decoded], timings)
            if answer.model is None:
                raise UnavailableError(answer.problem)
            model = answer.model
        raise UnavailableError("the model is being replaced; try again")

    async def _decode(self, data: bytes, model: ModelInfo) -> Pixels | ImageError:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._decoders, preprocess, data, model.image_size_px, model.resize_policy)
        except ImageError as error:
            return error

    async def _classify(self, images: Sequence[Pixels], model: ModelInfo) -> Classified | Status:
        """Sends images in calls of at most `max_batch_size`; all must be answered by one version."""
        if not images:
            return Classified(model, np.empty((0, len(model.class_names)), np.float32), 0, 0.0)
        step = self._config.max_batch_size
        calls = (self._classifier.classify(np.stack(images[i : i + step]), model.resize_policy) for i in range(0, len(images), step))
        answers = await asyncio.gather(*calls)
        classified = [answer for answer in answers if isinstance(answer, Classified)]
        if len(classified) < len(answers):
            return next(answer for answer in answers if isinstance(answer, Status))
        if any(answer.model != classified[0].model for answer in classified):
            return Status(classified[-1].model)
        rows = np.concatenate([answer.probabilities for answer in classified])
        slowest = max(classified, key=lambda answer: answer.inference_s)
        return Classified(slowest.model, rows, slowest.batch_size, slowest.inference_s)

    def _top_k(self, request: Request) -> int:
        text = request.query_params.get("top_k")
        if text is None:
            return self._config.top_k
        if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1):
            raise HTTPException(400, f"top_k must be a whole number of at least 1, got {text[:20]!r}")
        return int(text[:9])


def create_app(classifier: Classifier, config: ServeConfig) -> Starlette:
    """The app with all routes; every refusal is `application/problem+json` (RFC 9457)."""
    api, document = Api(classifier, config), openapi.document()
    page = docs_page.render(document)

    async def answer_document(_: Request) -> Response:
        return JSONResponse(document)

    async def answer_page(_: Request) -> Response:
        return HTMLResponse(page)

    async def go_to_docs(request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")

    routes = [
        Route("/predict", api.predict, methods=["POST"]),
        Route("/predict_base64", api.predict_base64, methods=["POST"]),
        Route("/predict_batch", api.predict_batch, methods=["POST"]),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/classes", api.classes),
        Route("/models", api.models),
        Route("/openapi.json", answer_document),
        Route("/docs", answer_page),
        Route("/", go_to_docs),
    ]
    return Starlette(routes=routes, exception_handlers=dict.fromkeys((HTTPException, *(row[0] for row in STATUS_TABLE)), refuse))


def prediction(model: ModelInfo, row: Row, top_k: int) -> schemas.Prediction:
    """Names the probabilities of one picture, float32 `[C]`; `top_k` may exceed C."""
    rounded = [round(float(probability), 6) for probability in row]
    ranked: list[schemas.ClassProbability] = [
        {"class_id": int(i), "class_name": model.class_names[i], "probability": rounded[i]} for i in np.argsort(-row, kind="stable")[:top_k]
    ]
    return {
        "class_id": ranked[0]["class_id"],
        "class_name": ranked[0]["class_name"],
        "confidence": ranked[0]["probability"],
        "top_k": ranked,
        "probabilities": dict(zip(model.class_names, rounded, strict=True)),
    }


def problem(error: Exception) -> schemas.Problem:
    """An error as RFC 9457 wants it; what nobody foresaw keeps its details for the log."""
    if isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
    else:
        status = next(status for kind, status in STATUS_TABLE if isinstance(error, kind))
        detail = str(error) if isinstance(error, CifarRayError) else "the server failed; its log says why"
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


async def refuse(request: Request, error: Exception) -> Response:
    """Answers a request with an error."""
    content = problem(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if content["status"] == 404:
        content["detail"] = f"there is nothing at {request.url.path}; /docs lists what there is"
    elif content["status"] == 405:
        content["detail"] = f"{request.method} is not possible here; allowed: {headers.get('Allow', 'nothing')}"
    elif content["status"] == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return JSONResponse(content, content["status"], headers, media_type="application/problem+json")


def _ms(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1000, 2)

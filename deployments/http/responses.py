"""HTTP responses: predictions, and errors as problem documents (RFC 9457). Only this module maps errors to HTTP statuses."""

from __future__ import annotations

import asyncio
import hashlib
import string
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import quote

import numpy as np
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cifar_ray.captures.capture_files import UnknownCaptureError
from cifar_ray.errors import CifarRayError, ImageError, ImageTooLargeError, StoreError, UnknownModelError
from cifar_ray.inference.overlay import overlay
from cifar_ray.jobs.job_record import JobConflictError, QueueFullError, UnknownJobError
from deployments.predicting import schemas
from deployments.predicting.contract import (
    DeadlineError,
    Explained,
    ModelFailedError,
    ModelInfo,
    Pixels,
    UnavailableError,
    UnknownClassError,
)
from deployments.predicting.pipeline import Row

# The first matching row gives the status, so subclasses come first.
STATUS_TABLE: tuple[tuple[type[Exception], int], ...] = (
    (ImageTooLargeError, 413),
    (ImageError, 422),
    (UnknownClassError, 400),
    (UnknownModelError, 404),
    (UnknownCaptureError, 404),
    (UnknownJobError, 404),
    (JobConflictError, 409),
    (QueueFullError, 503),
    (UnavailableError, 503),
    (StoreError, 503),
    (DeadlineError, 504),
    (ModelFailedError, 500),
    (ClientDisconnect, 400),
    (Exception, 500),
)


_LINGER_S = 2.0
_MIN_SIDE_PX = 224
_UNQUOTED = " " + string.punctuation.replace("%", "")


class Json(JSONResponse):
    """JSON response, encoded in Rust: six times as fast as the standard library."""

    def render(self, content: object) -> bytes:
        """Encode as UTF-8."""
        return to_json(content)


class LastJson(Json):
    """JSON response that closes the connection, for a client whose request is too large to read.

    Before closing, it discards input for at most two seconds. If it closed at once, the client might never see the response (RFC 9112,
    section 9.6).
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        self.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body"})


def prediction(model: ModelInfo, row: Row, top_k: int) -> schemas.Prediction:
    """Prediction for one picture as JSON values; `top_k` may exceed the number of classes."""
    rounded = [round(probability, 6) for probability in row.probabilities.tolist()]
    order = np.argsort(-row.probabilities, kind="stable")
    ranked: list[schemas.ClassProbability] = [
        {"class_id": i, "class_name": model.class_names[i], "probability": rounded[i]} for i in order[:top_k].tolist()
    ]
    predicted: schemas.Prediction = {
        "class_id": ranked[0]["class_id"],
        "class_name": ranked[0]["class_name"],
        "confidence": ranked[0]["probability"],
        "abstain": row.abstains,
        "top_k": ranked,
        "probabilities": dict(zip(model.class_names, rounded, strict=True)),
    }
    if model.rules is not None:
        above = model.rules.labels(row.probabilities)
        shown = [i for place, i in enumerate(order.tolist()) if place < top_k or above[i]]
        predicted["labels"] = [
            {"class": model.class_names[i], "class_id": i, "probability": rounded[i], "above_threshold": bool(above[i])} for i in shown
        ]
    return predicted


def explanation(explained: Explained) -> schemas.Explanation:
    """A heatmap as JSON values."""
    return {
        "model": explained.model.name,
        "version": explained.model.version,
        "class_id": explained.class_id,
        "class_name": explained.model.class_names[explained.class_id],
        "heatmap": explained.heatmap.astype(np.float64).round(4).tolist(),
    }


def explanation_png(pixels: Pixels, explained: Explained) -> Response:
    """A PNG of a heatmap over the network's input, uint8 `[S, S, 3]`, enlarged by a whole factor."""
    size_px = len(pixels)
    png = BytesIO()
    overlay(pixels, explained.heatmap, size_px * max(1, -(-_MIN_SIDE_PX // size_px))).save(png, "PNG")
    headers = {
        "X-Model": explained.model.reference,
        "X-Class-Id": str(explained.class_id),
        # a header is ASCII; a class name may contain any character
        "X-Class-Name": quote(explained.model.class_names[explained.class_id], safe=_UNQUOTED),
    }
    return Response(png.getvalue(), headers=headers, media_type="image/png")


def revalidated(request: Request, response: Response) -> Response:
    """The response with an `ETag`, or status 304 if the browser already has this content."""
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    known = [known.strip().removeprefix("W/") for known in request.headers.get("if-none-match", "").split(",")]
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if tag in known:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


@dataclass(frozen=True)
class ErrorForm:
    """Form of the errors of a protocol.

    Attributes:
        shape: type of the JSON document.
        media_type: media type of the response.
        fill: converts a problem document to this form.
    """

    shape: type
    media_type: str
    fill: Callable[[schemas.Problem], Any]


PROBLEM_FORM = ErrorForm(schemas.Problem, "application/problem+json", lambda content: content)


def problem(error: Exception) -> schemas.Problem:
    """An error as a problem document (RFC 9457). The details of an unexpected error go only to the log."""
    if isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
    else:
        status = next(status for kind, status in STATUS_TABLE if isinstance(error, kind))
        detail = str(error) if isinstance(error, CifarRayError) else "internal error; the server's log has the details"
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}

"""Routes for captured pictures: list, show, label and delete them. Each route needs an API key with a sufficient scope."""

from __future__ import annotations

import asyncio
import io
import re
from typing import Annotated, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cifar_ray.captures.capture_files import KEY_PATTERN, Capture, Captures, UnknownCaptureError, doubt_sort_key
from cifar_ray.captures.reviews import Review, Reviews
from cifar_ray.config import describe
from cifar_ray.errors import ImageError
from cifar_ray.inference.preprocess import preprocess
from deployments.http.access import require_scope
from deployments.http.operation import Operation
from deployments.http.responses import Json
from deployments.predicting import schemas

SHOWN_PX = 448

_MAX_LISTED = 1000
_MAX_BODY_BYTES = 10_000
_REQUEST_ID = r"[A-Za-z0-9._-]{1,100}"

Label = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]


class JsonBody(BaseModel):
    """A JSON body whose fields are checked."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _ReviewBody(JsonBody):
    key: str = Field(pattern=f"^{KEY_PATTERN}$")
    label: Label = ""
    undo: bool = False


class _FeedbackBody(JsonBody):
    request_id: str = Field(pattern=f"^{_REQUEST_ID}$")
    label: Label = Field(min_length=1)
    index: int = Field(0, ge=0, le=255)


Body = TypeVar("Body", bound=JsonBody)


def json_body(properties: dict[str, str], example: dict[str, str]) -> dict[str, object]:
    """Description of a JSON body for the OpenAPI document."""
    kinds = {"undo": "boolean", "index": "integer", "top_k": "integer"}
    schema = {
        "type": "object",
        "properties": {name: {"type": kinds.get(name, "string"), "description": text} for name, text in properties.items()},
    }
    return {"application/json": {"schema": schema, "example": example}}


_MAY_NOT = {403: "the server has no API keys, or the scope of this key is too small (cifar-ray keys add NAME --scope review)"}
_GONE = {404: "this picture is not captured any more"}
_BAD_BODY = {400: "the body is not as expected", 413: "the body is over 10 kB"}
_KEY = "rBOQ7vGm#0"

REVIEW_OPERATIONS = (
    Operation(
        "/captures",
        "List captured pictures, those first of which the model was unsure",
        schemas.CapturesAnswer,
        "-H 'X-API-Key: KEY' '{}?limit=20'",
        errors={400: f"limit is not a number from 1 to {_MAX_LISTED}"} | _MAY_NOT,
        parameters=(
            {"name": "limit", "in": "query", "description": "number of pictures", "schema": {"type": "integer", "default": 100}},
            {"name": "reviewed", "in": "query", "description": "true: those with a label, the newest first", "schema": {"type": "boolean"}},
        ),
    ),
    Operation(
        "/captures/picture",
        "Show a captured picture",
        None,
        "-H 'X-API-Key: KEY' -o picture.jpg '{}?key=rBOQ7vGm%230'",
        errors=_MAY_NOT | _GONE,
        parameters=(
            {
                "name": "key",
                "in": "query",
                "required": True,
                "description": "as in /captures",
                "schema": {"type": "string"},
                "example": _KEY,
            },
        ),
    ),
    Operation(
        "/captures/{request_id}",
        "Delete the pictures of a request, and what people said about them",
        schemas.Deleted,
        "-X DELETE -H 'X-API-Key: KEY' {}",
        errors={400: "not the id of a request"} | _MAY_NOT,
        parameters=(
            {
                "name": "request_id",
                "in": "path",
                "required": True,
                "description": "as in the header X-Request-Id of the answer",
                "schema": {"type": "string"},
            },
        ),
        method="delete",
    ),
    Operation(
        "/reviews",
        "Say what a captured picture shows",
        schemas.CaptureEntry,
        """-H 'X-API-Key: KEY' -d '{{"key": "rBOQ7vGm#0", "label": "frog"}}' {}""",
        json_body(
            {
                "key": "of the picture, as in /captures",
                "label": "the right class; several with commas between them; empty: none of the classes",
                "undo": "true: take the decision back",
            },
            {"key": _KEY, "label": "frog"},
        ),
        _BAD_BODY | _MAY_NOT | _GONE,
    ),
    Operation(
        "/feedback",
        "Say what was right, as the client of a request",
        schemas.FeedbackAnswer,
        """-H 'X-API-Key: KEY' -d '{{"request_id": "rBOQ7vGm", "label": "frog"}}' {}""",
        json_body(
            {
                "request_id": "as in the header X-Request-Id of the answer",
                "label": "the right class; several with commas between them",
                "index": "place of the picture in a batch, from 0",
            },
            {"request_id": "rBOQ7vGm", "label": "frog"},
        ),
        _BAD_BODY | _MAY_NOT,
    ),
)


class ReviewApi:
    """Handlers of the routes.

    Args:
        captures: the captured pictures.
        reviews: the labels that people gave.
    """

    def __init__(self, captures: Captures, reviews: Reviews) -> None:
        self._captures = captures
        self._reviews = reviews

    @property
    def routes(self) -> list[Route]:
        """The routes of these handlers."""
        return [
            Route("/captures", self.list),
            Route("/captures/picture", self.picture),
            Route("/captures/{request_id}", self.delete, methods=["DELETE"]),
            Route("/reviews", self.review, methods=["POST"]),
            Route("/feedback", self.feedback, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """`GET /captures`: list captured pictures, the most doubtful first; with `reviewed=true`, the labelled ones, the newest first."""
        require_scope(request, "review")
        limit = request.query_params.get("limit", "100")
        if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= _MAX_LISTED):
            raise HTTPException(400, f"limit: expected a whole number from 1 to {_MAX_LISTED}, got {limit[:20]!r}")
        captures, reviews = await asyncio.gather(asyncio.to_thread(self._captures.all), asyncio.to_thread(self._reviews.current))
        is_open = [capture for capture in captures if capture.key not in reviews]
        done = [capture for capture in captures if capture.key in reviews]
        shown = sorted(is_open, key=doubt_sort_key) if request.query_params.get("reviewed") != "true" else list(reversed(done))
        answer: schemas.CapturesAnswer = {
            "captures": [_entry(capture, reviews.get(capture.key)) for capture in shown[: int(limit)]],
            "num_open": len(is_open),
            "num_reviewed": len(done),
        }
        return Json(answer)

    async def picture(self, request: Request) -> Response:
        """`GET /captures/picture?key=`: the picture, as a JPEG of 448 × 448 px; not the file that a client sent."""
        require_scope(request, "review")
        capture = await self._find(request.query_params.get("key", ""))
        try:
            jpeg = await asyncio.to_thread(_as_jpeg, capture.picture)
        except ImageError as error:
            raise UnknownCaptureError(f"this picture cannot be shown: {error}") from None
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def review(self, request: Request) -> Response:
        """`POST /reviews`: label a captured picture, or undo its label."""
        who = require_scope(request, "review")
        sent = await read_body(request, _ReviewBody)
        capture = await self._find(sent.key)
        review = await asyncio.to_thread(self._reviews.add, sent.key, sent.label, who, capture, undone=sent.undo)
        return Json(_entry(capture, None if sent.undo else review))

    async def feedback(self, request: Request) -> Response:
        """`POST /feedback`: store the correct label that the client of a request sends."""
        who = require_scope(request, "predict")
        sent = await read_body(request, _FeedbackBody)
        key = f"{sent.request_id}#{sent.index}"
        capture = await asyncio.to_thread(self._captures.find, key)
        await asyncio.to_thread(self._reviews.add, key, sent.label, who, capture, source="feedback")
        answer: schemas.FeedbackAnswer = {"request_id": sent.request_id, "label": sent.label, "captured": capture is not None}
        return Json(answer)

    async def delete(self, request: Request) -> Response:
        """`DELETE /captures/REQUEST_ID`: delete the pictures of a request and their labels."""
        require_scope(request, "admin")
        request_id = request.path_params["request_id"]
        if not re.fullmatch(_REQUEST_ID, request_id):
            raise HTTPException(400, "expected the id of a request, as in the header X-Request-Id of its answer")
        pictures = await asyncio.to_thread(self._captures.delete, {request_id})
        reviews = await asyncio.to_thread(self._reviews.delete, request_id)
        answer: schemas.Deleted = {"pictures": pictures, "reviews": reviews}
        return Json(answer)

    async def _find(self, key: str) -> Capture:
        capture = await asyncio.to_thread(self._captures.find, key)
        if capture is None:
            raise UnknownCaptureError("this picture is not captured, or not any more")
        return capture


def _entry(capture: Capture, review: Review | None) -> schemas.CaptureEntry:
    return {
        "key": capture.key,
        "at": capture.at.isoformat(timespec="seconds"),
        "model": capture.model,
        "predicted": capture.predicted,
        "confidence": round(capture.confidence, 6),
        "abstain": capture.abstains,
        "disagrees": capture.disagrees,
        "label": review.label if review else None,
        "reviewed_by": review.by if review else None,
    }


def _as_jpeg(picture: bytes) -> bytes:
    jpeg = io.BytesIO()
    Image.fromarray(preprocess(picture, SHOWN_PX, "pad")).save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


async def read_body(request: Request, shape: type[Body]) -> Body:
    """The JSON body of a request.

    Raises:
        HTTPException: 400 if it does not have this shape, 413 if it is over 10 kB.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is over {_MAX_BODY_BYTES // 1000} kB")
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(400, f"the body is not as expected: {describe(error)}") from None

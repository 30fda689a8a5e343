"""The OpenAPI document. Shapes come from `schemas`; routes are listed here once, beside a line of curl each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from deployments import schemas
from deployments.uploads import MAX_BATCH_BYTES, MAX_BATCH_IMAGES

Json = dict[str, Any]

API_VERSION = "1"
_SERVER = "http://localhost:8000"
_REF = "#/components/schemas/{model}"

_PICTURE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP, GIF or TIFF, of any size and mode"}
_MODEL = {"type": "string", "description": "as ?model="}
_BASE64_BODY = {"application/json": {"schema": {"$ref": _REF.format(model="PictureInJson")}}}
_PICTURE_BODY = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"image": _PICTURE, "file": _PICTURE | {"description": "the same, for clients that call it so"}, "model": _MODEL},
            "description": "one picture, in either field",
        }
    },
    "image/*": {"schema": _PICTURE},
    "application/octet-stream": {"schema": _PICTURE},
    **_BASE64_BODY,
}
_PICTURES_BODY = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"images": {"type": "array", "items": _PICTURE, "maxItems": MAX_BATCH_IMAGES}, "model": _MODEL},
            "required": ["images"],
            "description": "fields named images[], image or file do as well",
        }
    }
}

_TOO_LARGE = f"over {MAX_IMAGE_BYTES // 10**6} MB or over {MAX_IMAGE_PIXELS // 10**6} megapixels"
_BAD_REQUEST = {400: "the body is malformed, or the picture is missing", 415: "the content type is not accepted"}
_BAD_PICTURE = {413: f"the picture is {_TOO_LARGE}", 422: "the picture is empty, broken or of another format"}
_NO_MODEL = {503: "no model answers now; the detail says what to do"}
_UNKNOWN_MODEL = {404: "there is no such model; the detail lists those there are"}
_PREDICTING = (
    _UNKNOWN_MODEL
    | {408: "the request took too long to arrive", 504: "the answer took too long"}
    | {503: "no model answers now, or too many pictures wait already; Retry-After says when to try again"}
)
_MODEL_PARAMETER = {
    "name": "model",
    "in": "query",
    "description": "name, name@version or name@alias of a model in the store; the server's own if it is left out",
    "schema": {"type": "string"},
}
_TOP_K_PARAMETER = {
    "name": "top_k",
    "in": "query",
    "description": "how many of the most likely classes to list",
    "schema": {"type": "integer", "minimum": 1},
}


@dataclass(frozen=True)
class Operation:
    """One route: what it takes, what it answers, and how to try it."""

    path: str
    summary: str
    answer: type
    curl: str
    body: Json = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    parameters: tuple[Json, ...] = ()


OPERATIONS = (
    Operation(
        "/predict",
        "Classify one picture",
        schemas.PredictAnswer,
        "-F image=@frog.jpg {}",
        _PICTURE_BODY,
        _BAD_REQUEST | _BAD_PICTURE | _PREDICTING,
        (_MODEL_PARAMETER, _TOP_K_PARAMETER),
    ),
    Operation(
        "/predict_base64",
        "Classify one picture sent as text",
        schemas.PredictAnswer,
        """-H 'Content-Type: application/json' -d '{{"image": "'"$(base64 -w0 frog.jpg)"'"}}' {}""",
        _BASE64_BODY,
        _BAD_REQUEST | _BAD_PICTURE | _PREDICTING,
        (_MODEL_PARAMETER, _TOP_K_PARAMETER),
    ),
    Operation(
        "/predict_batch",
        f"Classify up to {MAX_BATCH_IMAGES} pictures; a bad one gets its own error",
        schemas.BatchAnswer,
        "-F images=@frog.jpg -F images=@ship.png {}",
        _PICTURES_BODY,
        _BAD_REQUEST | {413: f"the request is over {MAX_BATCH_BYTES // 10**6} MB"} | _PREDICTING,
        (_MODEL_PARAMETER, _TOP_K_PARAMETER),
    ),
    Operation("/health", "Does the server run?", schemas.Health, "{}"),
    Operation("/ready", "Does a model answer?", schemas.Ready, "{}", errors=_NO_MODEL),
    Operation(
        "/classes",
        "What does a model tell apart?",
        schemas.Classes,
        "{}",
        errors=_NO_MODEL | _UNKNOWN_MODEL,
        parameters=(_MODEL_PARAMETER,),
    ),
    Operation(
        "/gallery",
        "What does a model get wrong?",
        schemas.GalleryAnswer,
        "{}",
        errors=_NO_MODEL | _UNKNOWN_MODEL | {403: "the server was started with gallery=false"},
        parameters=(_MODEL_PARAMETER,),
    ),
    Operation(
        "/models", "What does the model store hold?", schemas.Models, "{}", errors={503: "the model store or the model cannot be reached"}
    ),
)


def document() -> Json:
    """The OpenAPI 3.1 document, as plain JSON values."""
    shapes = {operation.answer for operation in OPERATIONS} | {schemas.PictureInJson, schemas.Problem}
    adapters: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (shape.__name__, "serialization", TypeAdapter(shape)) for shape in sorted(shapes, key=lambda shape: shape.__name__)
    ]
    _, definitions = TypeAdapter.json_schemas(adapters, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cifar_ray",
            "version": API_VERSION,
            "description": "Classifies pictures. Errors are problem documents (RFC 9457).",
        },
        "paths": {operation.path: {"post" if operation.body else "get": _describe(operation)} for operation in OPERATIONS},
        "components": {"schemas": definitions["$defs"]},
    }


def _describe(operation: Operation) -> Json:
    described: Json = {
        "summary": operation.summary,
        "operationId": operation.path.strip("/"),
        "x-codeSamples": [{"lang": "shell", "source": f"curl {operation.curl.format(_SERVER + operation.path)}"}],
        "responses": {"200": _response("the answer", operation.answer, "application/json")}
        | {str(status): _response(why, schemas.Problem, "application/problem+json") for status, why in sorted(operation.errors.items())},
    }
    if operation.body:
        described["requestBody"] = {"required": True, "content": operation.body}
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    return described


def _response(description: str, shape: type, media_type: str) -> Json:
    return {"description": description, "content": {media_type: {"schema": {"$ref": _REF.format(model=shape.__name__)}}}}

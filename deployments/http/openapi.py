"""The OpenAPI document. Shapes come from `schemas`; routes are listed here once, beside a line of curl each."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from deployments.http import openapi_examples
from deployments.http.access import OPEN_PATHS
from deployments.http.uploads import MAX_BATCH_BYTES, MAX_BATCH_IMAGES
from deployments.predicting import schemas

Json = dict[str, Any]

API_VERSION = "1"
_SERVER = "http://localhost:8000"
_REF = "#/components/schemas/{model}"

_PICTURE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP, GIF or TIFF, of any size and mode"}
_MODEL = {"type": "string", "description": "as ?model=", "examples": ["cifar10@1"]}
_BASE64 = {"type": "string", "description": "base64, or a data URI: data:image/png;base64,…", "examples": [openapi_examples.PICTURE_BASE64]}
_FORM_TEXT = {"image_base64": _BASE64, "model": _MODEL, "model_type": _MODEL | {"description": "the same, for clients that call it so"}}
_BASE64_BODY = {
    "application/json": {
        "schema": {"$ref": _REF.format(model="PictureInJson")},
        "example": {"image": f"data:image/png;base64,{openapi_examples.PICTURE_BASE64}"},
    },
    "application/x-www-form-urlencoded": {
        "schema": {"type": "object", "properties": _FORM_TEXT, "required": ["image_base64"]},
        "example": {"image_base64": openapi_examples.PICTURE_BASE64},
    },
}
_PICTURE_BODY = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"image": _PICTURE, "file": _PICTURE | {"description": "the same, for clients that call it so"}, **_FORM_TEXT},
            "oneOf": [{"required": [name]} for name in ("image", "file", "image_base64")],
            "description": "one picture, in one of three fields",
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
            "properties": {"images": {"type": "array", "items": _PICTURE, "minItems": 1, "maxItems": MAX_BATCH_IMAGES}, "model": _MODEL},
            "required": ["images"],
            "description": "fields named images[], image or file do as well",
        }
    }
}

_TOO_LARGE = f"over {MAX_IMAGE_BYTES // 10**6} MB or over {MAX_IMAGE_PIXELS // 10**6} megapixels"
_BAD_REQUEST = {
    400: "the body is malformed, the picture is missing, or a path stands in its place",
    415: "the content type is not accepted",
}
_BAD_PICTURE = {413: f"the picture is {_TOO_LARGE}", 422: "the picture is empty, broken or of another format"}
_NO_ENTRY = {
    401: "the server asks for a key, and none was sent, or one that it does not know",
    403: "the key was revoked",
    429: "more requests than the key may send; Retry-After says when to try again",
}
_FAILED = {500: "a mistake of the server; its log has the details"}
_WAIT = {"Retry-After": {"description": "seconds until it is worth trying again", "schema": {"type": "integer", "minimum": 1}}}
_ERROR_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": {"description": "how to send a key (RFC 6750)", "schema": {"type": "string"}}},
    429: _WAIT,
    503: _WAIT,
}
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
    "example": "cifar10@1",
}
_TOP_K_PARAMETER = {
    "name": "top_k",
    "in": "query",
    "description": "how many of the most likely classes to list",
    "schema": {"type": "integer", "minimum": 1},
    "example": 3,
}
_CLASS_PARAMETER = {
    "name": "class",
    "in": "query",
    "description": "name or class_id of the class to look for; the one predicted if it is left out",
    "schema": {"type": "string"},
}
_FORMAT_PARAMETER = {
    "name": "format",
    "in": "query",
    "description": "png: the heatmap laid over the picture; json: its numbers",
    "schema": {"type": "string", "enum": ["png", "json"], "default": "png"},
}
_PICTURE_HEADERS = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "X-Model": "name@version that was asked",
        "X-Class-Id": "of the class",
        "X-Class-Name": "its name; what is not ASCII is percent-encoded UTF-8",
    }.items()
}


@dataclass(frozen=True)
class Operation:
    """One route: what it takes, what it answers, and how to try it.

    Attributes:
        picture_headers: of the PNG that it answers with unless JSON is asked for; empty if it knows JSON only.
    """

    path: str
    summary: str
    answer: type
    curl: str
    body: Json = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    parameters: tuple[Json, ...] = ()
    picture_headers: Json = field(default_factory=dict)


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
    Operation(
        "/explain",
        "Where in the picture was a class seen? (Grad-CAM)",
        schemas.Explanation,
        "-F image=@frog.jpg -o seen.png '{}?class=cat'",
        _PICTURE_BODY,
        _BAD_REQUEST | {400: "the body is malformed, the picture is missing, or the model has no such class"} | _BAD_PICTURE | _PREDICTING,
        (_MODEL_PARAMETER, _CLASS_PARAMETER, _FORMAT_PARAMETER),
        _PICTURE_HEADERS,
    ),
    Operation("/health", "Does the server run?", schemas.Health, "{}"),
    Operation("/ready", "Does a model answer?", schemas.Ready, "{}", errors=_NO_MODEL),
    Operation(
        "/classes",
        "What does a model tell apart?",
        schemas.Classes,
        "{}",
        errors={400: "the address names a path"} | _NO_MODEL | _UNKNOWN_MODEL,
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
        "servers": [{"url": _SERVER}],
        "paths": {operation.path: {"post" if operation.body else "get": _describe(operation)} for operation in OPERATIONS},
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "where the server asks for keys"},
                "header": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "the same key, for clients that send it so",
                },
            },
        },
    }


def _describe(operation: Operation) -> Json:
    is_open = operation.path in OPEN_PATHS
    errors = operation.errors | _FAILED
    for status, why in {} if is_open else _NO_ENTRY.items():
        errors[status] = f"{errors[status]}; or {why}" if status in errors else why
    described: Json = {
        "summary": operation.summary,
        "operationId": operation.path.strip("/"),
        "x-codeSamples": [{"lang": "shell", "source": f"curl {operation.curl.format(_SERVER + operation.path)}"}],
        "responses": {"200": _response("the answer", operation.answer, "application/json", openapi_examples.ANSWERS[operation.answer])}
        | {str(status): _refusal(status, why) for status, why in sorted(errors.items())},
    }
    if operation.picture_headers:
        success = described["responses"]["200"]
        success["content"] = {"image/png": {"schema": _PICTURE | {"description": "RGB, square"}}} | success["content"]
        success["headers"] = operation.picture_headers
    if not is_open:
        described["security"] = [{}, {"bearer": []}, {"header": []}]  # none where the server asks for none
    if operation.body:
        described["requestBody"] = {"required": True, "content": operation.body}
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    return described


def _refusal(status: int, why: str) -> Json:
    example: schemas.Problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": openapi_examples.DETAILS[status],
    }
    headers = {"headers": _ERROR_HEADERS[status]} if status in _ERROR_HEADERS else {}
    return _response(why, schemas.Problem, "application/problem+json", example) | headers


def _response(description: str, shape: type, media_type: str, example: Any) -> Json:
    return {
        "description": description,
        "content": {media_type: {"schema": {"$ref": _REF.format(model=shape.__name__)}, "example": example}},
    }

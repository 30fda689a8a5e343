"""The OpenAPI document: the routes, each with a curl command; the schemas come from `schemas`."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from deployments.http import openapi_examples
from deployments.http.access import OPEN_PATHS
from deployments.http.operation import Json, Operation
from deployments.http.responses import ErrorForm
from deployments.http.review_routes import REVIEW_OPERATIONS
from deployments.http.uploads import MAX_BATCH_BYTES, MAX_BATCH_IMAGES
from deployments.predicting import schemas

API_VERSION = "1"
_EXAMPLE_SERVER = "http://localhost:8000"
_REF = "#/components/schemas/{model}"

_PICTURE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC, any size and colour mode"}
_ALTERNATIVE_NAME = "alternative name of the field, for compatibility"
_MODEL = {"type": "string", "description": "model, as in ?model=", "examples": ["cifar10@1"]}
_BASE64 = {"type": "string", "description": "base64, or a data URI: data:image/png;base64,…", "examples": [openapi_examples.PICTURE_BASE64]}
_FORM_TEXT = {"image_base64": _BASE64, "model": _MODEL, "model_type": _MODEL | {"description": _ALTERNATIVE_NAME}}
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
PICTURE_BODY = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"image": _PICTURE, "file": _PICTURE | {"description": _ALTERNATIVE_NAME}, **_FORM_TEXT},
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
            "description": "the field may also be named images[], image or file",
        }
    }
}

_TOO_LARGE = f"over {MAX_IMAGE_BYTES // 10**6} MB or over {MAX_IMAGE_PIXELS // 10**6} megapixels"
BAD_REQUEST = {
    400: "the body is malformed, the picture is missing, or the request contains a file path instead",
    415: "the content type is not supported",
}
BAD_PICTURE = {413: f"the picture is {_TOO_LARGE}", 422: "the picture is empty, damaged, or in an unsupported format"}
_ACCESS_ERRORS = {
    401: "the API key is missing or unknown",
    403: "the API key is revoked",
    429: "the API key exceeds its rate limit; Retry-After says when to try again",
}
_FAILED = {500: "internal error; the server's log has the details"}
_WAIT = {"Retry-After": {"description": "seconds to wait before the next attempt", "schema": {"type": "integer", "minimum": 1}}}
_ERROR_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": {"description": "how to send an API key (RFC 6750)", "schema": {"type": "string"}}},
    429: _WAIT,
    503: _WAIT,
}
NO_MODEL = {503: "no model is available; the detail says what to do"}
UNKNOWN_MODEL = {404: "model not found; the detail lists the available models"}
PREDICTING = (
    UNKNOWN_MODEL
    | {408: "the request did not arrive in time", 504: "the prediction timed out"}
    | {503: "no model is available, or the queue is full; Retry-After says when to try again"}
)
_MODEL_PARAMETER = {
    "name": "model",
    "in": "query",
    "description": "name, name@version or name@alias of a model in the store; default: the server's default model",
    "schema": {"type": "string"},
    "example": "cifar10@1",
}
TOP_K_PARAMETER = {
    "name": "top_k",
    "in": "query",
    "description": "number of most likely classes to list",
    "schema": {"type": "integer", "minimum": 1},
    "example": 3,
}
CLIENT_PARAMETER = {
    "name": "X-Client-Id",
    "in": "header",
    "description": "name of the client, which stays with one version while another is on trial; an operator may choose another header",
    "schema": {"type": "string"},
}
_CLASS_PARAMETER = {
    "name": "class",
    "in": "query",
    "description": "name or class_id of the class to explain; default: the predicted class",
    "schema": {"type": "string"},
}
_FORMAT_PARAMETER = {
    "name": "format",
    "in": "query",
    "description": "png: the heatmap over the picture; json: the values of the heatmap",
    "schema": {"type": "string", "enum": ["png", "json"], "default": "png"},
}
_PICTURE_HEADERS = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "X-Model": "name@version of the model",
        "X-Class-Id": "class_id of the explained class",
        "X-Class-Name": "name of the explained class; characters beyond ASCII are percent-encoded UTF-8",
    }.items()
}


OPERATIONS = (
    Operation(
        "/predict",
        "Classify one picture",
        schemas.PredictAnswer,
        "-F image=@frog.jpg {}",
        PICTURE_BODY,
        BAD_REQUEST | BAD_PICTURE | PREDICTING,
        (_MODEL_PARAMETER, TOP_K_PARAMETER, CLIENT_PARAMETER),
        headers={"X-Model": _PICTURE_HEADERS["X-Model"]},
    ),
    Operation(
        "/predict_base64",
        "Classify one picture sent as base64 text",
        schemas.PredictAnswer,
        """-H 'Content-Type: application/json' -d '{{"image": "'"$(base64 -w0 frog.jpg)"'"}}' {}""",
        _BASE64_BODY,
        BAD_REQUEST | BAD_PICTURE | PREDICTING,
        (_MODEL_PARAMETER, TOP_K_PARAMETER, CLIENT_PARAMETER),
        headers={"X-Model": _PICTURE_HEADERS["X-Model"]},
    ),
    Operation(
        "/predict_batch",
        f"Classify up to {MAX_BATCH_IMAGES} pictures; a picture that cannot be read gets its own error",
        schemas.BatchAnswer,
        "-F images=@frog.jpg -F images=@ship.png {}",
        _PICTURES_BODY,
        BAD_REQUEST | {413: f"the request is over {MAX_BATCH_BYTES // 10**6} MB"} | PREDICTING,
        (_MODEL_PARAMETER, TOP_K_PARAMETER, CLIENT_PARAMETER),
        headers={"X-Model": _PICTURE_HEADERS["X-Model"]},
    ),
    Operation(
        "/explain",
        "Show which part of the picture supports a class (Grad-CAM)",
        schemas.Explanation,
        "-F image=@frog.jpg -o seen.png '{}?class=cat'",
        PICTURE_BODY,
        BAD_REQUEST | {400: "the body is malformed, the picture is missing, or the model has no such class"} | BAD_PICTURE | PREDICTING,
        (_MODEL_PARAMETER, _CLASS_PARAMETER, _FORMAT_PARAMETER),
        _PICTURE_HEADERS,
    ),
    Operation("/health", "Check that the server runs", schemas.Health, "{}"),
    Operation("/ready", "Check that the server can predict", schemas.Ready, "{}", errors=NO_MODEL),
    Operation(
        "/classes",
        "List the classes of a model",
        schemas.Classes,
        "{}",
        errors={400: "the query contains a file path"} | NO_MODEL | UNKNOWN_MODEL,
        parameters=(_MODEL_PARAMETER,),
    ),
    Operation(
        "/gallery",
        "List the mistakes of a model on its test images",
        schemas.GalleryAnswer,
        "{}",
        errors=NO_MODEL | UNKNOWN_MODEL | {403: "the server was started with gallery=false"},
        parameters=(_MODEL_PARAMETER,),
    ),
    Operation(
        "/models", "List the models in the store", schemas.Models, "{}", errors={503: "the model store or the model cannot be reached"}
    ),
    *REVIEW_OPERATIONS,
)


def document(more: Sequence[Operation] = ()) -> Json:
    """The OpenAPI 3.1 document, as plain JSON values.

    Args:
        more: operations of other protocols.
    """
    operations = (*OPERATIONS, *more)
    shapes = {shape for one in operations for shape in (one.answer, one.body_shape, one.error_form.shape) if shape}
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.http_method] = _describe(operation)
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
        "servers": [{"url": ".", "description": "the server that sent this document, below its prefix"}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "if the server requires API keys"},
                "header": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "the same key in another header",
                },
            },
        },
    }


def _describe(operation: Operation) -> Json:
    is_open = operation.path in OPEN_PATHS
    errors = operation.errors | _FAILED
    for status, why in {} if is_open else _ACCESS_ERRORS.items():
        errors[status] = f"{errors[status]}; or {why}" if status in errors else why
    described: Json = {
        "summary": operation.summary,
        "operationId": operation.operation_id,
        "x-codeSamples": [{"lang": "shell", "source": f"curl {operation.curl.format(_EXAMPLE_SERVER + operation.example_path)}"}],
        "responses": {"200": _success(operation)}
        | {str(status): _refusal(status, why, operation.error_form) for status, why in sorted(errors.items())},
    }
    if operation.picture_headers:
        success = described["responses"]["200"]
        success["content"] = {"image/png": {"schema": _PICTURE | {"description": "RGB, square"}}} | success["content"]
        success["headers"] = operation.picture_headers
    if operation.headers:
        described["responses"]["200"]["headers"] = operation.headers
    if not is_open:
        described["security"] = [{}, {"bearer": []}, {"header": []}]  # {}: a server without keys
    if operation.body:
        described["requestBody"] = {"required": True, "content": operation.body}
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    return described


def _success(operation: Operation) -> Json:
    if operation.answer is None:
        return {"description": "success", "content": {"image/jpeg": {"schema": _PICTURE | {"description": "a square JPEG"}}}}
    return _response("success", operation.answer, "application/json", operation.example or openapi_examples.ANSWERS[operation.answer])


def _refusal(status: int, why: str, form: ErrorForm) -> Json:
    content: schemas.Problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": openapi_examples.DETAILS[status],
    }
    headers = {"headers": _ERROR_HEADERS[status]} if status in _ERROR_HEADERS else {}
    return _response(why, form.shape, form.media_type, form.fill(content)) | headers


def _response(description: str, shape: Any, media_type: str, example: Any) -> Json:
    return {
        "description": description,
        "content": {media_type: {"schema": {"$ref": _REF.format(model=shape.__name__)}, "example": example}},
    }

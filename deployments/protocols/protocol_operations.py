"""Descriptions of the routes of other protocols for the OpenAPI document."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deployments.http.openapi import (
    BAD_PICTURE,
    BAD_REQUEST,
    CLIENT_PARAMETER,
    NO_MODEL,
    PICTURE_BODY,
    PREDICTING,
    TOP_K_PARAMETER,
    UNKNOWN_MODEL,
)
from deployments.http.openapi_examples import PICTURE_BASE64
from deployments.http.operation import Operation
from deployments.http.uploads import MAX_BATCH_BYTES, MAX_BATCH_IMAGES
from deployments.protocols import inference_http, open_inference, torchserve
from deployments.protocols import protocol_schemas as schemas

_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "name or alias of a model",
    "schema": {"type": "string"},
    "example": "cifar10",
}
_VERSION = _NAME | {"name": "version", "description": "version, or an alias of the store such as production", "example": "1"}
_JSON_LENGTH = {
    "name": inference_http.JSON_LENGTH,
    "in": "header",
    "description": "bytes of the JSON document at the start of the body; raw tensors follow it",
    "schema": {"type": "integer", "minimum": 0},
}
_REQUEST: schemas.InferRequest = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [PICTURE_BASE64]}]}
_INFER_BODY = {
    "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}, "example": _REQUEST},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary", "description": "a JSON document, then raw tensors"}},
}
_INFER_ERRORS = (
    BAD_REQUEST
    | BAD_PICTURE
    | {
        400: f"the body or a tensor is malformed, or the request has more than {MAX_BATCH_IMAGES} pictures",
        413: f"a picture or the request is too large; the maximum for a request is {MAX_BATCH_BYTES // 10**6} MB",
        415: "the body is compressed",
    }
    | PREDICTING
)
_ANSWER: schemas.InferAnswer = {
    "model_name": "cifar10",
    "model_version": "1",
    "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["frog"]}],
}
_METADATA: schemas.ModelMetadata = {
    "name": "cifar10",
    "versions": ["1"],
    "platform": "cifar_ray",
    "inputs": [
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, 32, 32, 3]},
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
    ],
    "outputs": [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "class_id", "datatype": "INT64", "shape": [-1]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "abstains", "datatype": "BOOL", "shape": [-1]},
    ],
}


def _open_inference(path: str, summary: str, answer: Any, example: Any, errors: dict[int, str], **more: Any) -> Operation:
    curl = more.pop("curl", "{}")
    return Operation(path, summary, answer, curl, errors=errors, example=example, error_form=inference_http.ERROR_FORM, **more)


def _of_models() -> list[Operation]:
    described = _open_inference(
        "/v2/models/{name}", "Describe the inputs and outputs of a model", schemas.ModelMetadata, _METADATA, NO_MODEL | UNKNOWN_MODEL
    )
    is_ready = {"name": "cifar10", "ready": True}
    ready = _open_inference(
        "/v2/models/{name}/ready", "Check that a model can predict", schemas.ModelReady, is_ready, NO_MODEL | UNKNOWN_MODEL
    )
    infer = _open_inference(
        "/v2/models/{name}/infer",
        f"Classify up to {MAX_BATCH_IMAGES} pictures",
        schemas.InferAnswer,
        _ANSWER,
        _INFER_ERRORS,
        body=_INFER_BODY,
        body_shape=schemas.InferRequest,
        curl="""-d '{{"inputs": [{{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["'"$(base64 -w0 frog.jpg)"'"]}}]}}' {}""",
    )
    found = []
    for operation in (described, ready, infer):
        header = (_JSON_LENGTH, CLIENT_PARAMETER) if operation.body else ()
        found.append(replace(operation, parameters=(_NAME, *header)))
        path = operation.path.replace("{name}", "{name}/versions/{version}")
        found.append(replace(operation, path=path, summary=f"{operation.summary}, by version", parameters=(_NAME, _VERSION, *header)))
    return found


def _of_torchserve() -> list[Operation]:
    predict = Operation(
        "/predictions/{name}",
        "Classify one picture, as TorchServe does",
        schemas.TorchServePrediction,
        "-T frog.jpg {}",
        PICTURE_BODY,
        BAD_REQUEST | BAD_PICTURE | PREDICTING,
        (_NAME, TOP_K_PARAMETER, CLIENT_PARAMETER),
        example={"frog": 0.912204, "cat": 0.031877},
        error_form=torchserve.ERROR_FORM,
    )
    versioned = replace(
        predict,
        path="/predictions/{name}/{version}",
        summary="Classify one picture by a version, as TorchServe does",
        parameters=(_NAME, _VERSION, TOP_K_PARAMETER, CLIENT_PARAMETER),
    )
    with_put = [replace(operation, method="put") for operation in (predict, versioned)]
    ping = Operation(
        "/ping",
        "Check that the server can predict, as TorchServe does",
        schemas.Ping,
        "{}",
        errors=NO_MODEL,
        example={"status": "Healthy"},
        error_form=torchserve.ERROR_FORM,
    )
    return [predict, versioned, *with_put, ping]


OPERATIONS = (
    _open_inference("/v2", "Describe the server (Open Inference Protocol)", schemas.ServerMetadata, open_inference.SERVER, {}),
    _open_inference("/v2/health/live", "Check that the server runs", schemas.Live, {"live": True}, {}),
    _open_inference("/v2/health/ready", "Check that the server can predict", schemas.ServerReady, {"ready": True}, NO_MODEL),
    *_of_models(),
    *_of_torchserve(),
)

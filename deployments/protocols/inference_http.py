"""Open Inference Protocol v2 over HTTP, with the binary tensor data extension."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.http.access import holder
from deployments.http.handlers import Api
from deployments.http.responses import ErrorForm, Json
from deployments.http.uploads import MAX_BATCH_BYTES, MAX_TEXT_BYTES, BodyTooLargeError, read_body
from deployments.protocols import open_inference
from deployments.protocols import protocol_schemas as schemas
from deployments.protocols.open_inference import RequestedOutput
from deployments.protocols.tensors import InputTensor, OutputTensor

ERROR_FORM = ErrorForm(schemas.InferenceError, "application/json", lambda content: {"error": content["detail"]})
JSON_LENGTH = "Inference-Header-Content-Length"
_REQUEST = TypeAdapter(schemas.InferRequest)
# Parsing up to this size takes no longer than handing it to a thread and back.
_SHORT_BYTES = 16_384


class OpenInferenceHttp:
    """Handlers of the routes below `/v2`.

    Args:
        api: pipeline, limits and models.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def routes(self) -> list[Route]:
        """The routes."""
        found = [Route("/v2", self.server), Route("/v2/health/live", self.live), Route("/v2/health/ready", self.ready)]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            found += [
                Route(f"{model}/infer", self.infer, methods=["POST"]),
                Route(f"{model}/ready", self.model_ready),
                Route(model, self.model),
            ]
        return found

    async def server(self, _: Request) -> Response:
        """`GET /v2`."""
        return Json(open_inference.SERVER)

    async def live(self, _: Request) -> Response:
        """`GET /v2/health/live`: the process runs."""
        answer: schemas.Live = {"live": True}
        return Json(answer)

    async def ready(self, _: Request) -> Response:
        """`GET /v2/health/ready`: a model is available."""
        await self._api.pipeline.model(None)
        answer: schemas.ServerReady = {"ready": True}
        return Json(answer)

    async def model(self, request: Request) -> Response:
        """`GET /v2/models/{name}`."""
        return Json(await open_inference.describe(self._api, self._reference(request)))

    async def model_ready(self, request: Request) -> Response:
        """`GET /v2/models/{name}/ready`."""
        model = await self._api.pipeline.model(self._reference(request))
        answer: schemas.ModelReady = {"name": model.name, "ready": True}
        return Json(answer)

    async def infer(self, request: Request) -> Response:
        """`POST /v2/models/{name}/infer`."""
        text, raw = await self._api.read(request, _read)
        sent = _parse(text) if len(text) <= _SHORT_BYTES else await asyncio.to_thread(_parse, text)
        requested = [RequestedOutput(one["name"], one.get("parameters", {}).get("classification")) for one in sent.get("outputs", ())]
        classify = partial(
            self._api.classify, model_reference=self._reference(request), headers=request.headers, key_holder=holder(request)
        )
        model, outputs = await open_inference.infer(classify, _inputs(sent, raw), requested)
        answer: schemas.InferAnswer = {"model_name": model.name, "model_version": str(model.version), "outputs": []}
        if "id" in sent:
            answer["id"] = sent["id"]
        return _respond(answer, outputs, _which_are_binary(sent, len(outputs)))

    def _reference(self, request: Request) -> str:
        return open_inference.reference(self._api, request.path_params["name"], request.path_params.get("version"))


async def _read(request: Request) -> tuple[memoryview, memoryview]:
    """The JSON document of a request, and the raw bytes that follow it."""
    declared = request.headers.get(JSON_LENGTH)
    body = memoryview(await read_body(request, MAX_TEXT_BYTES if declared is None else MAX_BATCH_BYTES))
    if declared is None:
        return body, body[:0]
    if not (declared.isascii() and declared.isdecimal()) or int(declared[:19]) > len(body):
        raise HTTPException(400, f"{JSON_LENGTH}: expected at most the {len(body):,} bytes of the body, got {declared[:20]!r}")
    length = int(declared[:19])
    if length > MAX_TEXT_BYTES:
        raise BodyTooLargeError(f"the JSON document has {length:,} bytes; the maximum is {MAX_TEXT_BYTES:,}; send the tensor as raw bytes")
    return body[:length], body[length:]


def _parse(text: memoryview) -> schemas.InferRequest:
    try:
        return _REQUEST.validate_json(bytes(text))
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in mistake["loc"])
        raise HTTPException(400, f"{field}: {mistake['msg']}" if field else f"the body must be a JSON object: {mistake['msg']}") from None


def _inputs(sent: schemas.InferRequest, raw: memoryview) -> list[InputTensor]:
    found, position = [], 0
    for tensor in sent["inputs"]:
        content: memoryview | list[Any]
        if (length := tensor.get("parameters", {}).get("binary_data_size")) is None:
            if "data" not in tensor:
                raise HTTPException(400, f"input {tensor['name'][:100]!r} has neither 'data' nor the parameter 'binary_data_size'")
            content = tensor["data"]
        else:
            if not isinstance(length, int) or not 0 <= length <= len(raw) - position:
                raise HTTPException(
                    400,
                    f"input {tensor['name'][:100]!r}: binary_data_size is {str(length)[:20]}, but {len(raw) - position:,} bytes are left",
                )
            content = raw[position : position + length]
            position += length
        found.append(InputTensor(tensor["name"], tensor["datatype"], tuple(tensor["shape"]), content))
    if position < len(raw):
        raise HTTPException(400, f"{len(raw) - position:,} bytes follow the last tensor; set {JSON_LENGTH} and binary_data_size")
    return found


def _which_are_binary(sent: schemas.InferRequest, count: int) -> list[bool]:
    default = sent.get("parameters", {}).get("binary_data_output", False)
    requested = sent.get("outputs") or cast(list[schemas.NamedOutput], [{}] * count)
    return [bool(one.get("parameters", {}).get("binary_data", default)) for one in requested]


def _respond(answer: schemas.InferAnswer, outputs: list[OutputTensor], are_binary: list[bool]) -> Response:
    raws: list[bytes] = []
    for output, is_binary in zip(outputs, are_binary, strict=True):
        entry: schemas.ReturnedTensor = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if is_binary:
            raws.append(output.as_bytes())
            entry["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            entry["data"] = output.as_list()
        answer["outputs"].append(entry)
    document = Json(answer)
    if not any(are_binary):
        return document
    headers: Mapping[str, str] = {JSON_LENGTH: str(len(document.body))}
    return Response(b"".join([bytes(document.body), *raws]), headers=headers, media_type="application/octet-stream")

"""Open Inference Protocol v2 over gRPC. Ray Serve calls a method of the ingress for each RPC, with the context as `grpc_context`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from cifar_ray.errors import CifarRayError
from deployments.http.body_budget import BodiesTooLargeError
from deployments.http.handlers import Api
from deployments.http.uploads import MAX_TEXT_BYTES
from deployments.protocols import open_inference
from deployments.protocols.inference_messages import message
from deployments.protocols.open_inference import RequestedOutput
from deployments.protocols.tensors import InputTensor

logger = logging.getLogger("ray.serve")

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_TYPED = {"UINT8": "uint_contents", "BYTES": "bytes_contents"}


Fields = dict[str, Any]
Rpc = Callable[["OpenInferenceGrpc", Any, Any], Awaitable[Any]]


@dataclass(frozen=True)
class Call:
    """One gRPC request.

    Attributes:
        message: request message of the protocol.
        headers: metadata of the call.
        key_holder: holder of the API key; `None` if no key is needed.
    """

    message: Any
    headers: Headers
    key_holder: str | None = None


def _rpc(name: str, answer: Callable[[OpenInferenceGrpc, Call], Awaitable[Fields]], *, is_open: bool = False) -> Rpc:
    """Create a method as Ray Serve calls it; after an error, it sets the status of the call and returns an empty message.

    Args:
        name: name of the method.
        answer: computes the fields of the response.
        is_open: whether the method needs no API key.
    """

    async def run(self: OpenInferenceGrpc, request: Any, grpc_context: Any) -> Any:
        try:
            call = Call(request, _headers(grpc_context.invocation_metadata()))
            if not is_open:
                call = replace(call, key_holder=await self.check_key(call.headers))
            return message(f"{name}Response", **await answer(self, call))
        except Exception as error:
            content = self.api.counted(error)
            if content["status"] == 500:
                logger.exception("%s failed", name)
            grpc_context.set_code(_CODES.get(content["status"], grpc.StatusCode.INTERNAL))
            grpc_context.set_details(content["detail"])
            return message(f"{name}Response")

    return run


class OpenInferenceGrpc:
    """The methods of the service, by the names of the protocol.

    Args:
        api: pipeline, limits and models.
    """

    def __init__(self, api: Api) -> None:
        self.api = api
        self._held_bytes = 0

    async def check_key(self, headers: Headers) -> str | None:
        """Return the holder of the API key of a call; `None` if the server has no keys.

        Raises:
            HTTPException: 401, 403 or 429, as `KeyRing.admit`.
        """
        if self.api.keys is None:
            return None
        admitted = await self.api.keys.admit(headers.raw)
        if isinstance(admitted, HTTPException):
            raise admitted
        return admitted.name

    async def _live(self, _: Call) -> Fields:
        return {"live": True}

    async def _ready(self, _: Call) -> Fields:
        return {"ready": await self._can_predict(None)}

    async def _model_ready(self, call: Call) -> Fields:
        return {"ready": await self._can_predict(self._reference(call.message.name, call.message.version))}

    async def _server(self, _: Call) -> Fields:
        return {**open_inference.SERVER}

    async def _model(self, call: Call) -> Fields:
        return {**await open_inference.describe(self.api, self._reference(call.message.name, call.message.version))}

    async def _infer(self, call: Call) -> Fields:
        with self._held(call.message.ByteSize()):
            return await self._classify(call)

    async def _classify(self, call: Call) -> Fields:
        request = call.message
        requested = [
            RequestedOutput(one.name, one.parameters["classification"].int64_param if "classification" in one.parameters else None)
            for one in request.outputs
        ]
        model_reference = self._reference(request.model_name, request.model_version)
        classify = partial(self.api.classify, model_reference=model_reference, headers=call.headers, key_holder=call.key_holder)
        model, outputs = await open_inference.infer(classify, _inputs(request), requested)
        return {
            "model_name": model.name,
            "model_version": str(model.version),
            "id": request.id,
            "outputs": [{"name": output.name, "datatype": output.datatype, "shape": output.shape} for output in outputs],
            "raw_output_contents": [output.as_bytes() for output in outputs],
        }

    def _reference(self, name: str, version: str) -> str:
        return open_inference.reference(self.api, name, version)

    async def _can_predict(self, model_reference: str | None) -> bool:
        try:
            await self.api.pipeline.model(model_reference)
        except CifarRayError:
            return False
        return True

    @contextmanager
    def _held(self, size_bytes: int) -> Iterator[None]:
        """Count the bytes of a request in progress; refuse it if all messages together are too large, or if the queue is full."""
        self.api.pipeline.check_room()
        limit = self.api.config.max_body_bytes
        if self._held_bytes + size_bytes > limit:
            raise BodiesTooLargeError(f"the gRPC requests in progress need more than {limit:,} bytes together; try again later")
        self._held_bytes += size_bytes
        try:
            yield
        finally:
            self._held_bytes -= size_bytes

    ServerLive = _rpc("ServerLive", _live, is_open=True)
    ServerReady = _rpc("ServerReady", _ready, is_open=True)
    ModelReady = _rpc("ModelReady", _model_ready)
    ServerMetadata = _rpc("ServerMetadata", _server)
    ModelMetadata = _rpc("ModelMetadata", _model)
    ModelInfer = _rpc("ModelInfer", _infer)


def _headers(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    return Headers(raw=[(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in metadata])


def _inputs(request: Any) -> list[InputTensor]:
    found = []
    for index, tensor in enumerate(request.inputs):
        if index < len(request.raw_input_contents):
            content = request.raw_input_contents[index]
        else:
            values = getattr(tensor.contents, _TYPED.get(tensor.datatype, "bytes_contents"))
            if len(values) > MAX_TEXT_BYTES:  # a list of numbers needs eight times the memory
                raise HTTPException(413, f"input {tensor.name[:100]!r} has {len(values):,} values; send them in raw_input_contents")
            content = list(values)
        found.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), content))
    return found

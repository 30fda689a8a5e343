"""Open Inference Protocol v2 over gRPC: a real gRPC server and client, without Ray.

`make test-protocols` sends the same with tritonclient through Ray Serve.
"""

from __future__ import annotations

import asyncio
import functools
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from cifar_ray.config.api_keys import ApiKey, new_key, sha256_of, write_keys
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.inference.preprocess import preprocess
from deployments.predicting.contract import Status
from deployments.protocols import inference_messages
from deployments.protocols.inference_messages import METHODS, SERVICE, add_servicer, message
from deployments.protocols.protocol_server import ProtocolServer
from tests.deployments.protocol_clients import raw, read_raw
from tests.deployments.test_ingress import FakeClassifier, Notes

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def call(server: ProtocolServer, method: str, metadata: tuple[tuple[str, str], ...] = (), **fields: Any) -> Any:
    """The response, or the error, of a call over a socket."""

    async def once() -> Any:
        listener = grpc.aio.server()
        # as Ray Serve calls a method of the ingress
        methods = {name: functools.partial(_as_ray_calls, getattr(server, name)) for name in METHODS}
        add_servicer(SimpleNamespace(**methods), listener)
        port = listener.add_insecure_port("127.0.0.1:0")
        await listener.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            send = channel.unary_unary(
                f"/{SERVICE}/{method}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=type(message(f"{method}Response")).FromString,
            )
            try:
                return await send(message(f"{method}Request", **fields), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error
            finally:
                await listener.stop(None)

    return asyncio.run(once())


async def _as_ray_calls(method: Any, request: Any, context: Any) -> Any:
    return await method(request, grpc_context=context)


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def server(classifier: FakeClassifier) -> ProtocolServer:
    return ProtocolServer(classifier, ServeConfig(max_batch_size=4), Notes())


def infer(server: ProtocolServer, tensor: Any, metadata: tuple[tuple[str, str], ...] = (), **fields: Any) -> Any:
    is_pixels = isinstance(tensor, np.ndarray)
    sent = {
        "name": "pixels" if is_pixels else "image",
        "datatype": "UINT8" if is_pixels else "BYTES",
        "shape": list(tensor.shape) if is_pixels else [len(tensor)],
    }
    return call(
        server,
        "ModelInfer",
        metadata,
        **{"model_name": "pets", "model_version": "3", "inputs": [sent], "raw_input_contents": [raw(tensor)]} | fields,
    )


def outputs_of(answer: Any) -> dict[str, Any]:
    assert not isinstance(answer, grpc.aio.AioRpcError), answer
    return {
        output.name: read_raw(output.datatype, list(output.shape), content)
        for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def test_every_method_of_the_protocol_answers(server: ProtocolServer) -> None:
    assert call(server, "ServerLive").live
    assert call(server, "ServerReady").ready
    assert call(server, "ModelReady", name="pets", version="3").ready
    assert not call(server, "ModelReady", name="fish").ready
    assert list(call(server, "ServerMetadata").extensions) == ["classification", "binary_tensor_data"]
    described = call(server, "ModelMetadata", name="pets@3")
    assert (described.name, list(described.versions)) == ("pets", ["1", "3"])
    assert [(one.name, one.datatype, list(one.shape)) for one in described.inputs] == [
        ("pixels", "UINT8", [-1, 16, 16, 3]),
        ("image", "BYTES", [-1]),
    ]


def test_pixels_and_pictures_are_classified_as_over_http(server: ProtocolServer, classifier: FakeClassifier, picture: bytes) -> None:
    answer = infer(server, PIXELS, id="7")
    assert (answer.model_name, answer.model_version, answer.id) == ("pets", "3", "7")
    found = outputs_of(answer)
    assert found["label"] == ["eel"] * 3
    assert found["class_id"] == [2] * 3
    assert found["abstains"] == [False] * 3
    assert found["probabilities"] == [pytest.approx([0, 1 / 3, 2 / 3])] * 3
    outputs_of(infer(server, [picture]))
    images = np.concatenate(classifier.calls)
    assert np.array_equal(images[:3], PIXELS)
    assert np.array_equal(images[3], preprocess(picture, 16, "pad"))


def test_typed_contents_and_requested_outputs(server: ProtocolServer, classifier: FakeClassifier, picture: bytes) -> None:
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 16, 16, 3], "contents": {"uint_contents": PIXELS[0].ravel().tolist()}}
    file = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [picture]}}
    most_likely = {"name": "probabilities", "parameters": {"classification": message("InferParameter", int64_param=1)}}
    for tensor in (pixels, file):
        answer = infer(server, [], inputs=[tensor], raw_input_contents=[], outputs=[most_likely])
        assert outputs_of(answer) == {"probabilities": [["0.666667:2:eel"]]}
    assert np.array_equal(classifier.calls[0], PIXELS[:1])


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"model_name": "fish"}, "NOT_FOUND", "model 'fish@3' not found"),
        ({"inputs": []}, "INVALID_ARGUMENT", "expected one input"),
        ({"raw_input_contents": [b"x"]}, "INVALID_ARGUMENT", "needs 2,304 values, got 1"),
        ({"raw_input_contents": []}, "INVALID_ARGUMENT", "expected whole numbers from 0 to 255"),
        ({"outputs": [{"name": "x"}]}, "INVALID_ARGUMENT", "output 'x' not found"),
    ],
)
def test_an_error_is_a_status_with_one_line(server: ProtocolServer, fields: dict[str, Any], code: str, reason: str) -> None:
    error = infer(server, PIXELS, **fields)
    assert error.code().name == code
    assert reason in error.details()
    assert "\n" not in error.details()


def test_an_unexpected_error_says_nothing_of_the_server(server: ProtocolServer, classifier: FakeClassifier) -> None:
    classifier.failure = RuntimeError("secret")
    error = infer(server, PIXELS)
    assert (error.code().name, error.details()) == ("INTERNAL", "internal error; the server's log has the details")
    assert call(server, "ServerLive").live


def test_a_server_without_a_model_is_not_ready(server: ProtocolServer, classifier: FakeClassifier) -> None:
    classifier.now = Status(None, "no model yet")
    assert not call(server, "ServerReady").ready


def test_a_key_is_needed_but_for_health(classifier: FakeClassifier, tmp_path: Path) -> None:
    key, file = new_key(), tmp_path / "keys.txt"
    write_keys(file, [ApiKey("laptop", sha256_of(key.encode()), "unlimited")])
    server = ProtocolServer(classifier, ServeConfig(api_keys=file), Notes())
    assert call(server, "ServerLive").live
    assert call(server, "ServerReady").ready
    for method in METHODS[2:]:
        error = call(server, method)
        assert (error.code().name, "API key missing" in error.details()) == ("UNAUTHENTICATED", True)
    for metadata in (("authorization", f"Bearer {key}"), ("x-api-key", key)):
        assert call(server, "ModelReady", (metadata,), name="pets@3").ready


def test_messages_in_progress_fit_in_the_limit_of_all_bodies(classifier: FakeClassifier) -> None:
    config = ServeConfig().model_copy(update={"max_body_bytes": PIXELS.nbytes})
    error = infer(ProtocolServer(classifier, config, Notes()), PIXELS)
    assert error.code().name == "UNAVAILABLE"
    assert "2,304 bytes together" in error.details()


def test_many_numbers_must_come_as_raw_bytes(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.protocols.inference_grpc.MAX_TEXT_BYTES", 767)
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 16, 16, 3], "contents": {"uint_contents": [0] * 768}}
    error = infer(server, [], inputs=[pixels], raw_input_contents=[])
    assert (error.code().name, error.details()) == ("INVALID_ARGUMENT", "input 'pixels' has 768 values; send them in raw_input_contents")


def test_ray_can_send_a_message_to_another_process() -> None:
    sent = message("ModelInferRequest", model_name="pets", raw_input_contents=[b"x"])
    assert pickle.loads(pickle.dumps(sent)) == sent  # noqa: S301
    assert type(sent).__module__ == inference_messages.__name__  # pickle would search all modules for the class

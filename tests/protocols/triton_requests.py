"""Requests of NVIDIA's own client, in an environment that has tritonclient and nothing of cifar_ray: `test_tritonclient.py` runs it.

python triton_requests.py describe               prints the messages of tritonclient's gRPC stubs as JSON
python triton_requests.py HTTP GRPC MODEL PICTURE [KEY]   sends requests to a server, over HTTP and over gRPC
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

OUTPUTS = ("probabilities", "class_id", "label", "abstains")


def fields(descriptor: Any) -> dict[str, Any]:
    """Number, name and type of each field of a message, and the messages in it."""
    own = {field.name: [field.number, field.type] for field in descriptor.fields}
    return {descriptor.full_name: own} | {name: value for nested in descriptor.nested_types for name, value in fields(nested).items()}


def describe() -> None:
    from tritonclient.grpc import service_pb2

    found: dict[str, Any] = {}
    for message in service_pb2.DESCRIPTOR.message_types_by_name.values():
        found |= fields(message)
    print(json.dumps(found))


def expect_error(call: Any, reason: str) -> None:
    message = "no error"
    try:
        call()
    except InferenceServerException as error:
        message = error.message()
    assert reason in message, message
    assert "\n" not in message, message


def check(module: Any, client: Any, model: str, picture: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Use one of both clients as its documentation does; they have the same methods. Returns the answer for the picture."""
    is_http = module is tritonclient.http
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model, headers=headers)
    more = {"headers": headers} | ({} if is_http else {"as_json": True})
    assert client.get_server_metadata(**more)["name"] == "cifar_ray"
    metadata = client.get_model_metadata(model, **more)
    version = metadata["versions"][-1]
    assert client.is_model_ready(model, version, headers=headers)
    size_px = int(metadata["inputs"][0]["shape"][1])

    def infer(name: str, array: Any, *outputs: Any, binary: bool = True, to: str = model, **options: Any) -> Any:
        tensor = module.InferInput(name, list(array.shape), "UINT8" if name == "pixels" else "BYTES")
        tensor.set_data_from_numpy(array, **({"binary_data": binary} if is_http else {}))
        # a copy, because the client enters the length of the JSON document
        return client.infer(to, [tensor], outputs=list(outputs) or None, headers=dict(headers), **options)

    pixels = np.random.default_rng(0).integers(0, 256, (8, size_px, size_px, 3), np.uint8)
    answer = infer("pixels", pixels, request_id="7", model_version=version)
    response = answer.get_response() if is_http else answer.get_response(as_json=True)
    assert (response["model_name"], response["model_version"], response["id"]) == (model, version, "7")
    probabilities = answer.as_numpy("probabilities")
    assert (probabilities.dtype, probabilities.shape[0]) == (np.float32, 8)
    assert np.array_equal(answer.as_numpy("class_id"), probabilities.argmax(axis=1))
    assert answer.as_numpy("abstains").dtype == np.bool_
    requested = [
        module.InferRequestedOutput("probabilities", class_count=2, **({"binary_data": False} if is_http else {})),
        module.InferRequestedOutput("label"),
    ]
    some = infer("pixels", pixels, *requested)
    texts = np.char.decode(some.as_numpy("probabilities").astype(np.bytes_))
    assert texts.shape == (8, 2)
    labels = some.as_numpy("label").astype(np.bytes_)
    assert [text.split(":")[2] for text in texts[:, 0]] == [label.decode() for label in labels]
    if is_http:
        as_json = infer("pixels", pixels, binary=False)
        assert np.allclose(as_json.as_numpy("probabilities"), probabilities, atol=1e-6)
        pending = [client.async_infer(model, [_tensor(module, pixels)], headers=dict(headers)) for _ in range(4)]
        assert all(np.allclose(one.get_result().as_numpy("probabilities"), probabilities, atol=1e-6) for one in pending)
    expect_error(lambda: infer("pixels", pixels, to="fish"), "model 'fish' not found")
    expect_error(lambda: infer("pixels", pixels[:, 1:]), f"the model takes {size_px} × {size_px}")
    expect_error(lambda: infer("image", np.array([b"x"], object)), "empty, damaged")
    expect_error(lambda: infer("other", np.array([b"x"], object)), "input 'other' not found")
    if headers:
        expect_error(lambda: client.get_model_metadata(model), "API key missing")
    files = infer("image", np.array([picture, picture], object))
    return {name: files.as_numpy(name) for name in OUTPUTS}


def _tensor(module: Any, pixels: Any) -> Any:
    tensor = module.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def main() -> None:
    http, grpc, model, picture_file, *key = sys.argv[1:]
    headers = {"authorization": f"Bearer {key[0]}"} if key else {}
    picture = Path(picture_file).read_bytes()
    request = urllib.request.Request(f"http://{http}/predict?model={model}", picture, {"Content-Type": "image/png", **headers})
    with urllib.request.urlopen(request) as response:
        expected = json.load(response)
    answers = [
        check(tritonclient.http, tritonclient.http.InferenceServerClient(http, concurrency=4), model, picture, headers),
        check(tritonclient.grpc, tritonclient.grpc.InferenceServerClient(grpc), model, picture, headers),
    ]
    for answer in answers:
        assert np.allclose(answer["probabilities"], list(expected["probabilities"].values()), atol=2e-6)
        assert answer["label"].tolist() == [expected["class_name"].encode()] * 2
        assert answer["abstains"].tolist() == [expected["abstain"]] * 2
    print("tritonclient over HTTP and gRPC: as /predict")


if __name__ == "__main__":
    describe() if sys.argv[1:] == ["describe"] else main()

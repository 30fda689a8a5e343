"""Open Inference Protocol v2 and TorchServe's API over HTTP, over a classifier that needs neither Ray nor a network.

`make test-protocols` sends the same with tritonclient.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cifar_ray.config.api_keys import ApiKey, new_key, sha256_of, write_keys
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.inference.preprocess import preprocess
from deployments.http import uploads
from deployments.predicting.contract import Status
from deployments.protocols.protocol_server import ProtocolServer
from tests.deployments.protocol_clients import binary_request, raw, read_answer
from tests.deployments.test_ingress import PETS, FakeClassifier, Notes

Send = Callable[..., httpx.Response]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
PROBABILITIES = pytest.approx([0, 1 / 3, 2 / 3])


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def observer() -> Notes:
    return Notes()


def sender(server: ProtocolServer) -> Send:
    def send(method: str, path: str, **request: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(server.http_app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **request)

        return asyncio.run(once())

    return send


@pytest.fixture
def send(classifier: FakeClassifier, observer: Notes) -> Send:
    config = ServeConfig(max_batch_size=4, model_aliases={"animals": "pets", "fowl": "birds@1"})
    return sender(ProtocolServer(classifier, config, observer))


def answer_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return read_answer(response.content, response.headers.get("inference-header-content-length"))


def error(response: httpx.Response, status: int) -> str:
    """Checks the protocol's form of an error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    [(key, message)] = response.json().items()
    assert key == "error"
    assert "\n" not in message
    assert "Traceback" not in message
    return str(message)


def test_health_and_metadata_say_what_a_client_of_triton_asks(send: Send) -> None:
    assert send("GET", "/v2/health/live").json() == {"live": True}
    assert send("GET", "/v2/health/ready").json() == {"ready": True}
    assert send("GET", "/v2").json()["extensions"] == ["classification", "binary_tensor_data"]
    for path in ("/v2/models/pets@3", "/v2/models/pets@1/versions/3"):
        described = send("GET", path).json()
        assert (described["name"], described["versions"]) == ("pets", ["1", "3"])
        assert described["inputs"] == [
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, 16, 16, 3]},
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
        ]
        assert [(one["name"], one["datatype"], one["shape"]) for one in described["outputs"]] == [
            ("probabilities", "FP32", [-1, 3]),
            ("class_id", "INT64", [-1]),
            ("label", "BYTES", [-1]),
            ("abstains", "BOOL", [-1]),
        ]
    assert send("GET", "/v2/models/pets@3/ready").json() == {"name": "pets", "ready": True}


def test_an_alias_of_the_server_names_a_model_with_and_without_a_version(send: Send) -> None:
    assert send("GET", "/v2/models/fowl").json()["name"] == "birds"
    assert send("GET", "/v2/models/animals/versions/3/ready").json()["name"] == "pets"
    assert "pets@9" in error(send("GET", "/v2/models/animals/versions/9"), 404)


def test_raw_pixels_reach_the_model_as_they_are(send: Send, classifier: FakeClassifier, observer: Notes) -> None:
    answer = answer_of(send("POST", "/v2/models/pets/versions/3/infer", **binary_request(PIXELS, id="7")))
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("pets", "3", "7")
    assert answer["probabilities"] == [PROBABILITIES] * 3
    assert (answer["class_id"], answer["label"], answer["abstains"]) == ([2] * 3, ["eel"] * 3, [False] * 3)
    assert np.array_equal(np.concatenate(classifier.calls), PIXELS)
    assert len(observer.answers) == 1


def test_pixels_as_numbers_are_the_same_nested_or_flat(send: Send, classifier: FakeClassifier) -> None:
    for data in (PIXELS.tolist(), PIXELS.ravel().tolist()):
        sent = {"inputs": [{"name": "pixels", "shape": [3, 16, 16, 3], "datatype": "UINT8", "data": data}], "outputs": [{"name": "label"}]}
        response = send("POST", "/v2/models/pets@3/infer", json=sent)
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {
            "model_name": "pets",
            "model_version": "3",
            "outputs": [{"name": "label", "datatype": "BYTES", "shape": [3], "data": ["eel"] * 3}],
        }
        assert np.array_equal(np.concatenate(classifier.calls), PIXELS)
        classifier.calls.clear()


def test_picture_files_are_decoded_as_predict_decodes_them(send: Send, classifier: FakeClassifier, picture: bytes) -> None:
    expected = preprocess(picture, 16, "pad")
    answer_of(send("POST", "/v2/models/pets@3/infer", **binary_request([picture, picture])))
    text = base64.b64encode(picture).decode()
    for data, shape in (([text], [1]), ([[f"data:image/jpeg;base64,{text}"]], [1, 1])):
        answer_of(
            send("POST", "/v2/models/pets@3/infer", json={"inputs": [{"name": "image", "shape": shape, "datatype": "BYTES", "data": data}]})
        )
    assert [len(call) for call in classifier.calls] == [2, 1, 1]
    assert all(np.array_equal(image, expected) for call in classifier.calls for image in call)


def test_each_output_comes_in_the_form_that_is_asked_for(send: Send) -> None:
    most_likely = {"name": "probabilities", "parameters": {"classification": 2, "binary_data": True}}
    answer = answer_of(send("POST", "/v2/models/pets@3/infer", **binary_request(PIXELS[:1], most_likely, {"name": "abstains"})))
    assert answer["probabilities"] == [["0.666667:2:eel", "0.333333:1:dog"]]
    assert answer["abstains"] == [False]
    black = np.zeros((1, 16, 16, 3), np.uint8)
    assert answer_of(send("POST", "/v2/models/pets@3/infer", **binary_request(black)))["abstains"] == [True]


def test_a_model_with_several_labels_says_which_are_given(send: Send) -> None:
    assert send("GET", "/v2/models/scenes").json()["outputs"][-1] == {"name": "labels", "datatype": "BOOL", "shape": [-1, 4]}
    answer = answer_of(send("POST", "/v2/models/scenes/infer", **binary_request(PIXELS[:1])))
    assert answer["labels"] == [[False, False, True, False]]


def document(**changes: Any) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": "pixels", "shape": [1, 16, 16, 3], "datatype": "UINT8", "data": [0] * 768}
    return {"json": {"inputs": [tensor | changes]}}


def declared(length: str, body: bytes = b"{}") -> dict[str, Any]:
    return {"content": body, "headers": {"Inference-Header-Content-Length": length}}


LONG_ELEMENT = binary_request([b"x" * 8])
LONG_ELEMENT["content"] = LONG_ELEMENT["content"][:-12] + b"\xff\xff\xff\xff" + b"x" * 8
MORE_BYTES = binary_request(PIXELS)
MORE_BYTES["content"] += b"x"


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        ({"content": b""}, 400, "must be a JSON object"),
        ({"content": b"[1]"}, 400, "must be a JSON object"),
        ({"json": {}}, 400, "inputs: Field required"),
        ({"json": {"inputs": []}}, 400, "expected one input, pixels or image, got 0"),
        ({"json": {"inputs": [{"name": name, "shape": [1], "datatype": "", "data": []} for name in ("pixels", "image")]}}, 400, "got 2"),
        (document(name="x"), 400, "input 'x' not found. Available: pixels (UINT8), image (BYTES)"),
        (document(datatype="FP32"), 400, "input 'pixels': expected datatype UINT8, got 'FP32'"),
        (document(shape=[1, 3, 16, 16]), 400, "expected shape [N, H, W, 3], got [1, 3, 16, 16]"),
        (document(shape=[]), 400, "expected shape [N, H, W, 3], got []"),
        (document(shape=[0, 16, 16, 3]), 400, "expected shape [N, H, W, 3]"),
        (document(shape=[-1, 16, 16, 3]), 400, "expected shape [N, H, W, 3]"),
        (document(shape=[1, 10**4299, 10**4299, 3]), 413, "more than 100,000,000 values"),
        (document(shape=[257, 16, 16, 3]), 400, "the request has 257 pictures; the maximum is 256"),
        (document(shape=[2, 16, 16, 3]), 400, "shape [2, 16, 16, 3] needs 1,536 values, got 768"),
        (document(shape=[1, 16, 32, 3], data=[0] * 1536), 422, "the pixels are 16 × 32 (height × width), and the model takes 16 × 16"),
        (document(data=[0] * 767 + [256]), 400, "expected whole numbers from 0 to 255"),
        (document(data=[0] * 767 + [-1]), 400, "expected whole numbers from 0 to 255"),
        (document(data=[0.5] * 768), 400, "expected whole numbers from 0 to 255"),
        (document(data=["1"] * 768), 400, "expected whole numbers from 0 to 255"),
        (document(data=[[0], [0, 1]]), 400, "expected whole numbers from 0 to 255"),
        (document(data=[]), 400, "expected whole numbers from 0 to 255"),
        (document(name="image", datatype="BYTES", shape=[1], data=["?"]), 422, "not valid base64"),
        (document(name="image", datatype="BYTES", shape=[1], data=[5]), 400, "expected base64 text for each picture, got int"),
        (document(name="image", datatype="BYTES", shape=[2, 2], data=["", ""]), 400, "expected shape [N] or [N, 1]"),
        (document(name="image", datatype="BYTES", shape=[2], data=["eA=="]), 400, "shape [2] needs 2 values, got 1"),
        (binary_request([b"x", b"y"]), 422, "picture 0 of 2 (from 0):"),
        (binary_request(PIXELS, {"name": "x"}), 400, "output 'x' not found. Available: probabilities, class_id, label, abstains"),
        (binary_request(PIXELS, {"name": "label", "parameters": {"classification": 1}}), 400, "is for 'probabilities' only"),
        (binary_request(PIXELS, {"name": "probabilities", "parameters": {"classification": 0}}), 400, "at least 1, got '0'"),
        (binary_request(PIXELS, {"name": "probabilities", "parameters": {"classification": True}}), 400, "at least 1, got 'True'"),
        (declared("3"), 400, "expected at most the 2 bytes of the body, got '3'"),
        (declared("-1"), 400, "got '-1'"),
        (declared("²"), 400, "Inference-Header-Content-Length"),
        (document(parameters={"binary_data_size": 9}), 400, "binary_data_size is 9, but 0 bytes are left"),
        (document(parameters={"binary_data_size": -1}), 400, "binary_data_size is -1"),
        (document(parameters={"binary_data_size": "x"}), 400, "binary_data_size is x"),
        (binary_request(np.zeros((1, 16, 16, 3), np.uint8)[:0]), 400, "expected shape [N, H, W, 3], got [0, 16, 16, 3]"),
        (document(parameters={"binary_data_size": 0}), 400, "needs 768 values, got 0"),
        (LONG_ELEMENT, 400, "element 0 is longer than the data"),
        (MORE_BYTES, 400, "1 bytes follow the last tensor"),
        (document() | {"headers": {"Content-Encoding": "gzip"}}, 415, "Content-Encoding 'gzip' is not supported"),
    ],
)
def test_a_request_that_cannot_be_answered_is_one_line_in_the_form_of_the_protocol(
    send: Send, request_: dict[str, Any], status: int, reason: str
) -> None:
    if request_.get("headers", {}).get("Inference-Header-Content-Length") == "²":
        request_ = request_ | {"headers": {"Inference-Header-Content-Length": "²".encode("latin-1")}}
    assert reason in error(send("POST", "/v2/models/pets@3/infer", **request_), status)


def test_a_tensor_without_data_and_bytes_after_the_last_element_are_named(send: Send) -> None:
    sent = document()
    del sent["json"]["inputs"][0]["data"]
    assert "has neither 'data' nor" in error(send("POST", "/v2/models/pets@3/infer", **sent), 400)
    two = binary_request([b"x", b"y"])
    head, content = two["content"][: -len(raw([b"x", b"y"]))], raw([b"x", b"y"])
    one = head.replace(b'"shape": [2]', b'"shape": [1]')
    assert "5 bytes follow the last element" in error(send("POST", "/v2/models/pets@3/infer", **two | {"content": one + content}), 400)


def test_limits_of_bodies_hold_while_reading(send: Send, classifier: FakeClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.protocols.inference_http.MAX_TEXT_BYTES", 1000)
    monkeypatch.setattr("deployments.protocols.inference_http.MAX_BATCH_BYTES", 2000)
    assert "1,000" in error(send("POST", "/v2/models/pets@3/infer", **document()), 413)
    assert "2,000" in error(send("POST", "/v2/models/pets@3/infer", **binary_request(PIXELS)), 413)
    assert "the maximum is 1,000" in error(send("POST", "/v2/models/pets@3/infer", **declared("1500", b"x" * 1600)), 413)
    assert classifier.calls == []
    assert uploads.MAX_BATCH_BYTES == 100_000_000


def test_other_errors_have_the_form_too(send: Send, classifier: FakeClassifier, observer: Notes) -> None:
    assert "model 'fish' not found" in error(send("POST", "/v2/models/fish/infer", **binary_request(PIXELS)), 404)
    assert "/v2/nothing not found" in error(send("GET", "/v2/nothing"), 404)
    assert "GET is not allowed" in error(send("GET", "/v2/models/pets/infer"), 405)
    classifier.now = Status(None, "no model in the store; train one")
    response = send("GET", "/v2/health/ready")
    assert "train one" in error(response, 503)
    assert response.headers["retry-after"] == "2"
    classifier.failure = RuntimeError("secret")
    assert error(send("POST", "/v2/models/new/infer", **binary_request(PIXELS)), 500) == (
        "internal error; the server's log has the details"
    )
    assert observer.reasons == ["Not Found", "Not Found", "Method Not Allowed", "Service Unavailable", "Internal Server Error"]


def test_a_key_is_needed_but_for_health(classifier: FakeClassifier, picture: bytes, tmp_path: Path) -> None:
    key, file = new_key(), tmp_path / "keys.txt"
    write_keys(file, [ApiKey("laptop", sha256_of(key.encode()), "unlimited")])
    send = sender(ProtocolServer(classifier, ServeConfig(api_keys=file), Notes()))
    for path in ("/v2/health/live", "/v2/health/ready", "/ping"):
        assert send("GET", path).status_code == 200
    for method, path in (
        ("GET", "/v2"),
        ("GET", "/v2/models/pets@3"),
        ("GET", "/v2/models/pets@3/ready"),
        ("POST", "/v2/models/pets@3/infer"),
    ):
        assert "API key missing" in error(send(method, path), 401)
    refused = send("POST", "/predictions/pets@3", content=picture)
    assert (refused.status_code, refused.json()["code"], refused.json()["type"]) == (401, 401, "UnauthorizedException")
    sent = binary_request(PIXELS)
    assert send("POST", "/v2/models/pets@3/infer", content=sent["content"], headers=sent["headers"] | {"x-api-key": key}).status_code == 200


@pytest.mark.parametrize("path", ["/predictions/pets@3", "/predictions/animals/3"])
def test_clients_of_torchserve_get_its_answer_however_they_send_a_picture(send: Send, picture: bytes, path: str) -> None:
    expected = {"eel": 0.666667, "dog": 0.333333, "cat": 0.0}
    for method, request in (
        ("POST", {"content": picture}),  # requests.post(url, data=picture)
        ("PUT", {"content": picture}),  # curl -T picture.jpg
        ("POST", {"files": {"data": ("frog.jpg", picture)}}),  # curl -F data=@picture.jpg
        ("POST", {"content": picture, "headers": {"Content-Type": "image/jpeg"}}),
    ):
        response = send(method, path, **request)
        assert response.status_code == 200, response.text
        assert list(response.json().items()) == list(expected.items())  # most likely first
    assert send("POST", f"{path}?top_k=1", content=picture).json() == {"eel": 0.666667}
    assert send("GET", "/ping").json() == {"status": "Healthy"}


def test_errors_have_torchserves_form(send: Send, classifier: FakeClassifier) -> None:
    for method, path, content, code, kind, reason in (
        ("POST", "/predictions/fish", b"x", 404, "ModelNotFoundException", "model 'fish' not found"),
        ("POST", "/predictions/pets@3", b"x", 422, "UnprocessableEntityException", "damaged"),
        ("GET", "/predictions/pets@3", b"", 405, "MethodNotAllowedException", "Allowed"),
    ):
        response = send(method, path, content=content)
        assert response.status_code == code
        assert (response.json()["code"], response.json()["type"]) == (code, kind)
        assert reason in response.json()["message"]
    classifier.now = Status(None, "no model yet")
    assert send("GET", "/ping").json() == {"code": 503, "type": "ServiceUnavailableException", "message": "no model yet"}


def test_pixels_share_the_batches_and_the_queue_of_predict(classifier: FakeClassifier, picture: bytes) -> None:
    server = ProtocolServer(classifier, ServeConfig(max_batch_size=4, max_pending_images=4), Notes())

    async def together(*pixels: Any) -> list[int]:
        transport = httpx.ASGITransport(server.http_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            sent = [client.post("/v2/models/pets@3/infer", **binary_request(one)) for one in pixels]
            return [response.status_code for response in await asyncio.gather(*sent, client.post("/predict?model=pets@3", content=picture))]

    assert asyncio.run(together(PIXELS[:2])) == [200, 200]
    assert [len(call) for call in classifier.calls] == [3]
    assert asyncio.run(together(PIXELS[:2], PIXELS[:2])) == [200, 200, 503]


def test_the_document_describes_the_request_that_a_client_sends(send: Send) -> None:
    example = send("GET", "/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
    sent = example["application/json"]["example"]
    assert answer_of(send("POST", "/v2/models/pets@3/infer", content=json.dumps(sent)))["label"] == ["eel"]
    assert PETS.name == "pets"

"""The HTTP side over a classifier that needs neither Ray nor a network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import TypeAdapter

from cifar_ray.config import ResizePolicy, parse_config
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.data.decoding.formats import FORMATS
from cifar_ray.errors import ConfigError
from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES, preprocess
from cifar_ray.metrics.label_rules import LabelRules
from deployments.http import responses, uploads
from deployments.http.body_budget import BodiesTooLargeError, BodyBudget
from deployments.http.routes import create_app
from deployments.predicting import schemas
from deployments.predicting.contract import (
    Classified,
    Classifier,
    LoadedVersion,
    ModelInfo,
    Observer,
    Status,
    StoredGallery,
    StoredModel,
    TrialEvent,
    UnavailableError,
)
from tests.data.heic_writer import heic

BIRDS = ModelInfo("birds", 1, ("jay", "tit"), 8, "crop")
PETS = ModelInfo("pets", 3, ("cat", "dog", "eel"), 16, "pad")
SCENES = ModelInfo("scenes", 2, ("beach", "dog", "night", "sea"), 16, "pad", LabelRules((0.1, 0.3, 0.3, 0.6), (1.0,) * 4, (0.0,) * 4))
ABOUT = {"cat": "<b>not</b> a lynx"}
MAX_BATCH_SIZE = 4
IN_MEMORY: Any = {"version": 3, "engine": "torch", "precision": "bf16"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}
Send = Callable[..., httpx.Response]


class FakeClassifier(Classifier):
    """Says `eel` of everything, and remembers what it was sent."""

    def __init__(self) -> None:
        self.now = Status(PETS)
        self.failure: Exception | None = None
        self.others = {"birds": BIRDS, "birds@1": BIRDS, "scenes": SCENES}
        self.calls: list[npt.NDArray[np.uint8]] = []
        self.gallery_file: bytes | None = None

    async def status(self, reference: str | None = None) -> Status:
        if self.failure:
            raise self.failure
        if reference is None or (self.now.model and reference == self.now.model.reference):
            return self.now
        if reference not in self.others:
            return Status(None, f"model {reference!r} not found. Available: birds@1, pets@3", is_known=False)
        return Status(self.others[reference])

    async def models(self) -> list[StoredModel]:
        pets = StoredModel(
            "pets", (1, 3), {"production": 3}, (LoadedVersion(**IN_MEMORY),), PETS.class_names, 0.93, class_descriptions=ABOUT
        )
        return [StoredModel("birds", (1,), {}, problem="damaged"), pets]

    async def gallery(self, reference: str | None) -> StoredGallery | Status:
        status = await self.status(reference)
        return StoredGallery(status.model.name, status.model.version, self.gallery_file) if status.model else status

    async def classify(self, images: npt.NDArray[np.uint8], reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        status = await self.status(reference)
        model = status.model
        if model is None or (images.shape[1], resize_policy) != (model.image_size_px, model.resize_policy):
            return status
        self.calls.append(images)
        row = np.linspace(0, 1, len(model.class_names), dtype=np.float32)
        abstains = images.max(axis=(1, 2, 3)) == 0  # black pictures are strange to it
        return Classified(model, np.tile(row / row.sum(), (len(images), 1)), abstains, len(images), 0.001)


class Notes(Observer):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.answers: list[schemas.Timings] = []
        self.reasons: list[str] = []
        self.events: list[TrialEvent] = []
        self.most_pending = self.now_pending = 0

    def answered(self, timings_ms: schemas.Timings) -> None:
        self.answers.append(timings_ms)

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)

    def trial_event(self, name: str, version: int, event: TrialEvent, problem: str = "") -> None:
        self.events.append(event)

    def pending(self, images: int) -> None:
        self.now_pending, self.most_pending = images, max(images, self.most_pending)


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


@pytest.fixture
def observer() -> Notes:
    return Notes()


@pytest.fixture
def send(classifier: FakeClassifier, observer: Notes) -> Send:
    app = create_app(classifier, ServeConfig(max_batch_size=MAX_BATCH_SIZE), observer)

    def send(method: str, path: str, **request: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **request)

        return asyncio.run(once())

    return send


def problem(response: httpx.Response, status: int) -> str:
    """Checks that the answer is a problem document, and gives its detail."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    content = TypeAdapter(schemas.Problem).validate_python(response.json(), strict=True, extra="forbid")
    assert content["status"] == status
    assert "\n" not in content["detail"]
    assert "Traceback" not in response.text
    return content["detail"]


@pytest.mark.parametrize("kind", ["avif", "heic"])
def test_pictures_of_phones_reach_the_model(send: Send, classifier: FakeClassifier, kind: str) -> None:
    if kind == "heic":
        pytest.importorskip("pi_heif")
        data = heic()
    else:
        if "AVIF" not in FORMATS:
            pytest.skip("this Pillow has no AVIF")
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), "red").save(buffer, "AVIF")
        data = buffer.getvalue()
    response = send("POST", "/predict", content=data, headers={"content-type": f"image/{kind}"})
    assert response.status_code == 200
    [images] = classifier.calls
    np.testing.assert_array_equal(images[0], preprocess(data, 16, "pad"))


def as_form(data: bytes, prefix: str = "") -> dict[str, str]:
    return {"image_base64": prefix + base64.b64encode(data).decode()}


def as_json(data: bytes, prefix: str = "") -> dict[str, str]:
    return {"image": prefix + base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("path", "request_of"),
    [
        ("/predict", lambda data: {"files": {"image": ("frog.jpg", data)}}),
        ("/predict", lambda data: {"files": {"file": ("frog.jpg", data)}}),
        ("/predict", lambda data: {"content": data, "headers": {"content-type": "image/jpeg"}}),
        ("/predict", lambda data: {"content": data, "headers": {"content-type": "application/octet-stream"}}),
        ("/predict", lambda data: {"content": data}),
        ("/predict", lambda data: {"json": as_json(data)}),
        ("/predict", lambda data: {"json": as_json(data, "data:image/jpeg;base64,")}),
        ("/predict_base64", lambda data: {"json": as_json(data)}),
        ("/predict_base64", lambda data: {"json": as_json(data, "data:image/jpeg;base64,")}),
        ("/predict", lambda data: {"data": as_form(data)}),
        ("/predict", lambda data: {"data": as_form(data, "data:image/jpeg;base64,")}),
        ("/predict", lambda data: {"files": {name: (None, text) for name, text in as_form(data).items()}}),
        ("/predict", lambda data: {"content": f"image_base64={as_form(data)['image_base64']}", "headers": FORM}),
        ("/predict", lambda data: {"json": as_json(data) | {"model": None, "model_type": None}}),
        ("/predict", lambda data: {"json": {"image": base64.encodebytes(data).decode()}}),
        ("/predict", lambda data: {"content": b'{"image": "%s"}' % base64.encodebytes(data), "headers": JSON}),  # of GNU base64
        ("/predict", lambda data: {"content": b'{"image": "%s"}' % base64.encodebytes(data).replace(b"\n", b"\r\n"), "headers": JSON}),
        ("/predict", lambda data: {"data": {"image_base64": base64.encodebytes(data).decode()}}),
        ("/predict", lambda data: {"content": b"image_base64=" + base64.encodebytes(data), "headers": FORM}),
        ("/predict", lambda data: {"files": {"image_base64": (None, base64.encodebytes(data))}}),
        ("/predict", lambda data: {"content": data, "headers": {"content-encoding": "identity"}}),
        ("/predict_base64", lambda data: {"data": as_form(data)}),
        ("/predict_base64", lambda data: {"files": {name: (None, text) for name, text in as_form(data).items()}}),
    ],
)
def test_every_form_of_upload_reaches_the_model_as_the_same_pixels(
    send: Send, classifier: FakeClassifier, picture: bytes, path: str, request_of: Callable[[bytes], dict[str, Any]]
) -> None:
    response = send("POST", path, **request_of(picture))
    assert response.status_code == 200
    answer = TypeAdapter(schemas.PredictAnswer).validate_python(response.json(), strict=True, extra="forbid")
    assert (answer["model"], answer["version"], answer["class_id"], answer["class_name"]) == ("pets", 3, 2, "eel")
    assert answer["confidence"] == answer["probabilities"]["eel"] == pytest.approx(2 / 3, abs=1e-6)
    assert [entry["class_name"] for entry in answer["top_k"]] == ["eel", "dog", "cat"]
    assert list(answer["probabilities"]) == ["cat", "dog", "eel"]
    [images] = classifier.calls
    np.testing.assert_array_equal(images[0], preprocess(picture, 16, "pad"))


@pytest.mark.parametrize(("top_k", "listed"), [("1", 1), ("2", 2), ("999999999999", 3)])
def test_top_k_lists_as_many_classes_as_there_are_at_most(send: Send, picture: bytes, top_k: str, listed: int) -> None:
    assert len(send("POST", f"/predict?top_k={top_k}", content=picture).json()["top_k"]) == listed


@pytest.mark.parametrize("top_k", ["0", "-1", "two", "1.5", "", "²"])
def test_an_impossible_top_k_is_refused(send: Send, picture: bytes, top_k: str) -> None:
    assert "top_k" in problem(send("POST", "/predict", params={"top_k": top_k}, content=picture), 400)


@pytest.mark.parametrize(
    ("path", "request_", "status", "detail"),
    [
        ("/predict", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "'text/plain' is not supported"),
        ("/predict", {"data": {"image": "x"}}, 415, "x-www-form-urlencoded"),
        ("/predict", {"data": {"image_base64": "###"}}, 422, "base64"),
        ("/predict", {"files": {"image_base64": (None, b"###")}}, 422, "base64"),
        ("/predict", {"data": {str(number): "x" for number in range(99)} | {"image_base64": "eA=="}}, 415, "image_base64"),
        ("/predict", {"content": b"x", "headers": {"content-encoding": "gzip"}}, 415, "Content-Encoding 'gzip'"),
        ("/predict", {"content": b"x", "headers": JSON | {"content-encoding": "br"}}, 415, "Content-Encoding 'br'"),
        ("/predict_batch", {"files": {"images": b"x"}, "headers": {"content-encoding": "GZIP"}}, 415, "Content-Encoding 'gzip'"),
        ("/predict_batch", {"json": {"images": []}}, 415, "multipart/form-data"),
        ("/predict", {"files": {"other": ("a", b"x")}}, 400, "fields received: 'other'"),
        ("/predict", {"files": {"image": (None, b"text")}}, 400, "contains text"),
        ("/predict", {"files": [("image", ("a", b"x")), ("image", ("b", b"y"))]}, 400, "/predict_batch"),
        ("/predict_batch", {"files": {"other": ("a", b"x")}}, 400, "'images'"),
        ("/predict", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ("/predict", {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, "multipart"),
        ("/predict", {"content": b"--y\r\n", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, "is incomplete"),
        ("/predict", {"content": b'{"image": ', "headers": {"content-type": "application/json"}}, 400, "JSON"),
        ("/predict", {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "JSON"),
        ("/predict", {"content": b'{"image": "\xff"}', "headers": {"content-type": "application/json"}}, 400, "JSON"),
        ("/predict", {"json": {}}, 400, "image: Field required"),
        ("/predict", {"json": {"image": 1}}, 400, "image: "),
        ("/predict", {"json": ["image"]}, 400, "object"),
        ("/predict", {"json": {"image": "###"}}, 422, "base64"),
        ("/predict", {"content": b""}, 422, "picture"),
        ("/predict", {"content": b"not a picture"}, 422, "picture"),
        ("/predict", {"files": {"image": ("a.jpg", b"")}}, 422, "picture"),
    ],
)
def test_bad_input_is_answered_with_what_is_wrong(send: Send, path: str, request_: dict[str, Any], status: int, detail: str) -> None:
    assert detail in problem(send("POST", path, **request_), status)


def test_a_truncated_picture_is_refused(send: Send, picture: bytes) -> None:
    problem(send("POST", "/predict", content=picture[: len(picture) // 2]), 422)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda data: {"content": data},
        lambda data: {"files": {"image": ("a", data)}},
        lambda data: {"json": as_json(data + b"xx")},
        lambda data: {"files": {"image": ("a", data + bytes(200_000))}},
    ],
)
def test_a_picture_of_more_than_10_mb_is_refused(send: Send, request_of: Callable[[bytes], dict[str, Any]]) -> None:
    assert "10,000,000" in problem(send("POST", "/predict", **request_of(bytes(MAX_IMAGE_BYTES + 1))), 413)


async def in_two_parts(data: bytes) -> AsyncIterator[bytes]:
    yield data[:1000]
    yield data[1000:]


@pytest.mark.parametrize(
    "request_of",
    [
        lambda data: {"content": data},
        lambda data: {"content": in_two_parts(data)},
        lambda data: {"files": {"image": ("a", data)}},
        lambda data: {"json": as_json(data)},
        lambda data: {"data": as_form(data)},
        lambda data: {"files": {"image_base64": (None, base64.b64encode(data))}},
    ],
)
def test_a_picture_of_exactly_10_mb_is_read_in_every_form(
    send: Send, picture: bytes, request_of: Callable[[bytes], dict[str, Any]]
) -> None:
    assert send("POST", "/predict", **request_of(picture.ljust(MAX_IMAGE_BYTES, b"\0"))).status_code == 200


@pytest.mark.parametrize(
    ("path", "content_type", "limit"),
    [
        ("/predict", "image/png", MAX_IMAGE_BYTES),
        ("/predict", "multipart/form-data; boundary=y", MAX_IMAGE_BYTES * 4 // 3),
        ("/predict", "application/x-www-form-urlencoded", MAX_IMAGE_BYTES * 3 // 2),
        ("/predict", "application/json", MAX_IMAGE_BYTES * 4 // 3),
        ("/predict_batch", "multipart/form-data; boundary=y", uploads.MAX_BATCH_BYTES),
    ],
)
def test_the_limit_holds_while_reading_a_body_without_a_length(
    send: Send, monkeypatch: pytest.MonkeyPatch, path: str, content_type: str, limit: int
) -> None:
    monkeypatch.setattr(responses, "_LINGER_S", 0.01)
    taken = 0

    async def unfinished() -> AsyncIterator[bytes]:
        """More than is allowed, and then nothing for longer than the server waits."""
        nonlocal taken
        yield b'--y\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(limit // 2**20 + 2):
            taken += 2**20
            yield bytes(2**20)
        await asyncio.sleep(3600)

    problem(send("POST", path, content=unfinished(), headers={"content-type": content_type}), 413)
    assert taken <= limit + 2**21


def test_all_bodies_together_are_bounded_while_they_arrive_and_the_room_comes_back(
    classifier: FakeClassifier, observer: Notes, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "_LINGER_S", 0.01)
    limit = 10 * len(picture)
    app = create_app(classifier, ServeConfig().model_copy(update={"max_body_bytes": limit}), observer)
    go_on = asyncio.Event()
    taken = 0

    async def slow(parts: int) -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(parts):
            taken += 1
            yield picture
        await go_on.wait()

    async def fill() -> tuple[list[httpx.Response], list[httpx.Response], httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            accepted = [asyncio.create_task(client.post("/predict", content=slow(5))) for _ in range(2)]
            async with asyncio.timeout(10):
                while taken < 10:
                    await asyncio.sleep(0)
                await asyncio.sleep(0.01)
                refused = [await client.post("/predict", content=content) for content in (picture, slow(1))]
            go_on.set()
            return refused, await asyncio.gather(*accepted), await client.post("/predict", content=picture)

    refused, accepted, later = asyncio.run(fill())
    for response in refused:
        assert f"{limit:,} bytes" in problem(response, 503)
        assert int(response.headers["retry-after"]) > 0
    assert [response.status_code for response in accepted] == [200] * 2  # a JPEG with bytes after its end
    assert later.status_code == 200


def test_a_body_that_says_it_is_too_long_for_the_room_is_refused_unread(classifier: FakeClassifier, picture: bytes) -> None:
    app = create_app(classifier, ServeConfig().model_copy(update={"max_body_bytes": len(picture)}), Notes())

    async def ask(content: bytes) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post("/predict", content=content)

    assert asyncio.run(ask(picture)).status_code == 200
    problem(asyncio.run(ask(picture + b"\0")), 503)


def test_what_is_no_request_passes_the_limit_of_bodies_unchanged() -> None:
    seen: list[Any] = []

    async def app(*parts: Any) -> None:
        seen.extend(parts)

    parts: Any = ({"type": "lifespan"}, object(), object())
    asyncio.run(BodyBudget(app, 10)(*parts))  # type: ignore[arg-type]
    assert seen == list(parts)


@pytest.mark.parametrize(("declared", "reads"), [(b"11", 0), (b"10", 1), (b"9" * 30, 0), (b"ten", 1)])
def test_a_declared_length_beyond_the_room_is_refused_before_a_byte_is_read(declared: bytes, reads: int) -> None:
    received: list[str] = []

    async def receive() -> dict[str, Any]:
        received.append("read")
        return {"type": "http.request", "body": b"0123456789"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append((await receive())["body"])

    headers = [(b"x-other", b"99"), (b"content-length", declared)]
    ask = BodyBudget(app, 10)({"type": "http", "headers": headers}, receive, print)  # type: ignore[arg-type]
    with contextlib.nullcontext() if reads else pytest.raises(BodiesTooLargeError):
        asyncio.run(ask)  # type: ignore[arg-type]
    assert received == ["read", b"0123456789"][: 2 * reads]


def test_in_a_batch_a_bad_picture_gets_its_own_error_and_the_others_their_answers(
    send: Send, classifier: FakeClassifier, picture: bytes
) -> None:
    names = ["images", "images[]", "image", "file", "images", "images"]
    contents = [picture, b"broken", picture, picture, picture, picture]
    response = send(
        "POST",
        "/predict_batch?top_k=1",
        files=[(name, (f"{i}.jpg", data)) for i, (name, data) in enumerate(zip(names, contents, strict=True))],
    )
    answer = TypeAdapter(schemas.BatchAnswer).validate_python(response.json(), strict=True)
    assert response.status_code == 200
    assert [(item["index"], item["filename"], "error" in item) for item in answer["predictions"]] == [
        (i, f"{i}.jpg", i == 1) for i in range(6)
    ]
    assert response.json()["predictions"][1]["error"]["status"] == 422
    assert [item.get("class_name") for item in response.json()["predictions"]] == ["eel", None, "eel", "eel", "eel", "eel"]
    assert answer["num_failed"] == 1
    assert sorted(map(len, classifier.calls)) == [1, MAX_BATCH_SIZE]


def test_in_a_batch_bad_base64_has_its_error_in_its_place(send: Send, picture: bytes) -> None:
    texts = [base64.b64encode(picture), b"###", base64.b64encode(picture)]
    response = send("POST", "/predict_batch", files=[("image_base64", (None, text)) for text in texts])
    answer = response.json()
    assert (response.status_code, answer["num_failed"]) == (200, 1)
    assert ["error" in entry for entry in answer["predictions"]] == [False, True, False]
    error = answer["predictions"][1]["error"]
    assert (error["status"], "base64" in error["detail"]) == (422, True)


def test_a_batch_of_bad_pictures_is_answered_without_the_model(send: Send, classifier: FakeClassifier) -> None:
    response = send("POST", "/predict_batch", files=[("images", ("a", b"x")), ("images", ("b", bytes(MAX_IMAGE_BYTES + 1)))])
    assert [item["error"]["status"] for item in response.json()["predictions"]] == [422, 413]
    assert classifier.calls == []


def test_too_many_pictures_in_a_batch_are_refused(send: Send) -> None:
    files = [("images", ("a", b"x"))] * (uploads.MAX_BATCH_IMAGES + 1)
    assert "256" in problem(send("POST", "/predict_batch", files=files), 400)
    assert send("POST", "/predict_batch", files=files[1:]).json()["num_failed"] == uploads.MAX_BATCH_IMAGES


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/health", schemas.Health),
        ("/ready", schemas.Ready),
        ("/classes", schemas.Classes),
        ("/models", schemas.Models),
        ("/gallery", schemas.GalleryAnswer),
    ],
)
def test_what_the_server_says_of_itself_is_as_documented(send: Send, path: str, shape: Any) -> None:
    response = send("GET", path)
    assert response.status_code == 200
    TypeAdapter(shape).validate_python(response.json(), strict=True, extra="forbid")
    assert send("HEAD", path).status_code == 200


def test_models_lists_the_store_and_what_is_loaded(send: Send) -> None:
    assert send("GET", "/models").json() == {
        "models": [
            {"name": "birds", "versions": [1], "aliases": {}, "task": "single-label", "test_map": None}
            | {"classes": [], "class_descriptions": {}, "test_accuracy": None, "loaded": [], "problem": "damaged"},
            {"name": "pets", "versions": [1, 3], "aliases": {"production": 3}, "task": "single-label", "test_map": None}
            | {"classes": ["cat", "dog", "eel"], "class_descriptions": ABOUT}
            | {"test_accuracy": 0.93, "loaded": [IN_MEMORY], "problem": None},
        ],
        "default": "pets@3",
        "problem": None,
    }


def test_without_a_model_the_server_lives_and_says_what_to_do(send: Send, classifier: FakeClassifier, picture: bytes) -> None:
    classifier.now = Status(None, "no model yet. Train one")
    assert send("GET", "/health").status_code == 200
    assert send("GET", "/models").json()["problem"] == "no model yet. Train one"
    responses = [send("GET", "/ready"), send("GET", "/classes"), send("POST", "/predict", content=picture)]
    responses.append(send("POST", "/predict_batch", files={"images": ("a", picture)}))
    for response in responses:
        assert problem(response, 503) == "no model yet. Train one"
        assert int(response.headers["retry-after"]) > 0


def test_a_model_that_appears_changes_or_goes_is_noticed_by_the_next_request(
    send: Send, classifier: FakeClassifier, picture: bytes
) -> None:
    classifier.now = Status(None, "none yet")
    problem(send("POST", "/predict", content=picture), 503)
    for now in (PETS, ModelInfo("pets", 4, ("ant", "bee"), 8, "crop")):
        classifier.now = Status(now)
        answer = send("POST", "/predict", content=picture).json()
        assert (answer["version"], list(answer["probabilities"])) == (now.version, list(now.class_names))
        np.testing.assert_array_equal(classifier.calls[-1][0], preprocess(picture, now.image_size_px, now.resize_policy))
    classifier.now = Status(None, "gone")
    assert problem(send("POST", "/predict", content=picture), 503) == "gone"


@pytest.mark.parametrize(
    ("path", "request_of"),
    [
        ("/predict?model=birds", lambda data: {"content": data}),
        ("/predict?model_type=birds@1", lambda data: {"content": data}),
        ("/predict", lambda data: {"files": {"image": ("a", data)}, "data": {"model": "birds"}}),
        ("/predict", lambda data: {"files": {"image": ("a", data)}, "data": {"model_type": "birds"}}),
        ("/predict", lambda data: {"json": as_json(data) | {"model": "birds"}}),
        ("/predict_base64", lambda data: {"json": as_json(data) | {"model_type": "birds"}}),
        ("/predict", lambda data: {"data": as_form(data) | {"model_type": "birds"}}),
        ("/predict", lambda data: {"files": {name: (None, text) for name, text in (as_form(data) | {"model_type": "birds"}).items()}}),
        ("/predict_batch", lambda data: {"files": {"images": ("a", data)}, "data": {"model": "birds"}}),
        ("/predict_batch?model=birds", lambda data: {"files": {"images": ("a", data)}, "data": {"model": "fish"}}),
    ],
)
def test_a_request_may_name_the_model(
    send: Send, classifier: FakeClassifier, picture: bytes, path: str, request_of: Callable[[bytes], dict[str, Any]]
) -> None:
    answer = send("POST", path, **request_of(picture)).json()
    assert (answer["model"], answer["version"]) == ("birds", 1)
    np.testing.assert_array_equal(classifier.calls[-1][0], preprocess(picture, 8, "crop"))
    assert send("GET", "/classes?model=birds").json()["classes"] == ["jay", "tit"]


@pytest.mark.parametrize("name", ["image_path", "model_path"])
@pytest.mark.parametrize(
    ("path", "request_of"),
    [
        ("/predict?{}=/etc/passwd", lambda _, data: {"content": data}),
        ("/predict?{}=", lambda _, data: {"content": data}),
        ("/predict", lambda name, data: {"json": as_json(data) | {name: "/etc/passwd"}}),
        ("/predict", lambda name, data: {"json": {name: "/etc/passwd"}}),
        ("/predict", lambda name, data: {"data": as_form(data) | {name: "/etc/passwd"}}),
        ("/predict", lambda name, data: {"files": {"image": ("a", data)}, "data": {name: "/etc/passwd"}}),
        ("/predict", lambda name, data: {"files": {"image": ("a", data), name: ("passwd", b"")}}),
        ("/predict_base64", lambda name, data: {"json": as_json(data) | {name: "x"}}),
        ("/predict_batch", lambda name, data: {"files": {"images": ("a", data)}, "data": {name: "/etc/passwd"}}),
        ("/predict_batch?{}=x", lambda _, data: {"files": {"images": ("a", data)}}),
    ],
)
def test_a_path_on_the_server_is_never_taken_from_a_client(
    send: Send, classifier: FakeClassifier, picture: bytes, name: str, path: str, request_of: Callable[[str, bytes], dict[str, Any]]
) -> None:
    detail = problem(send("POST", path.format(name), **request_of(name, picture)), 400)
    assert detail.startswith(f"{name}: file paths are not supported")
    assert classifier.calls == []


def test_a_model_with_several_labels_says_which_the_picture_has(send: Send, picture: bytes) -> None:
    answer = send("POST", "/predict?model=scenes&top_k=2", content=picture).json()
    TypeAdapter(schemas.PredictAnswer).validate_python(answer, strict=True, extra="forbid")
    # the fake's probabilities are 0, 1/6, 2/6 and 3/6: the labels above their thresholds, and the two most likely classes
    assert [(label["class"], label["class_id"], label["above_threshold"]) for label in answer["labels"]] == [
        ("sea", 3, False),
        ("night", 2, True),
    ]
    assert [label["probability"] for label in answer["labels"]] == pytest.approx([1 / 2, 1 / 3], abs=1e-6)
    assert (answer["class_name"], answer["confidence"]) == ("sea", 0.5)
    [one] = send("POST", "/predict_batch?model=scenes&top_k=1", files=[("images", ("a", picture))]).json()["predictions"]
    assert [(label["class"], label["above_threshold"]) for label in one["labels"]] == [("sea", False), ("night", True)]


def test_a_model_with_one_class_a_picture_has_no_labels(send: Send, picture: bytes) -> None:
    assert "labels" not in send("POST", "/predict", content=picture).json()


def test_classes_says_the_task_of_the_model(send: Send) -> None:
    tasks = [send("GET", f"/classes?model={name}").json()["task"] for name in ("birds", "scenes")]
    assert tasks == ["single-label", "multi-label"]


def test_an_alias_of_the_operator_means_its_model_in_every_route(classifier: FakeClassifier, picture: bytes) -> None:
    config = parse_config(ServeConfig, {"model_aliases": "original=birds, regrouped=birds@1"})
    app = create_app(classifier, config, Notes())

    async def ask(method: str, path: str, **request: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method, path, **request)

    for response in (
        asyncio.run(ask("POST", "/predict", files={"image": picture}, data={"model_type": "original"})),
        asyncio.run(ask("POST", "/predict?model=regrouped", content=picture)),
        asyncio.run(ask("POST", "/predict_batch", files={"images": picture}, data={"model_type": "regrouped"})),
        asyncio.run(ask("GET", "/classes?model=regrouped")),
        asyncio.run(ask("GET", "/gallery?model_type=original")),
    ):
        assert (response.status_code, response.json()["model"]) == (200, "birds"), response.text


@pytest.mark.parametrize("aliases", ["original", "original=", "=birds", "original=bi rds", "a=b,,"])
def test_an_impossible_alias_is_refused(aliases: str) -> None:
    with pytest.raises(ConfigError, match="model_aliases"):
        parse_config(ServeConfig, {"model_aliases": aliases})


def test_an_unknown_model_is_a_404_with_the_list(send: Send, picture: bytes) -> None:
    for path in ("/predict?model=fish", "/predict?model=../etc/passwd"):
        assert "Available: birds@1, pets@3" in problem(send("POST", path, content=picture), 404)


def test_replicas_with_different_versions_answer_one_request_by_one(send: Send, classifier: FakeClassifier, picture: bytes) -> None:
    newer = ModelInfo("pets", 4, PETS.class_names, 16, "pad")
    classifier.others["pets@4"] = newer
    alternating = itertools.cycle([PETS, newer])
    answer_as_one = classifier.classify

    async def alternate(images: npt.NDArray[np.uint8], reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        if reference is None:
            classifier.now = Status(next(alternating))
        return await answer_as_one(images, reference, resize_policy)

    classifier.classify = alternate  # type: ignore[method-assign]
    response = send("POST", "/predict_batch", files=[("images", ("a", picture))] * 2 * MAX_BATCH_SIZE)
    assert (response.status_code, response.json()["version"]) == (200, 4)


def test_beyond_its_room_requests_are_refused_at_once_and_all_others_answered(
    classifier: FakeClassifier, observer: Notes, picture: bytes
) -> None:
    free = asyncio.Event()
    answer_at_once = classifier.classify

    async def wait(images: npt.NDArray[np.uint8], reference: str | None, resize_policy: ResizePolicy) -> Classified | Status:
        await free.wait()
        return await answer_at_once(images, reference, resize_policy)

    classifier.classify = wait  # type: ignore[method-assign]
    app = create_app(classifier, ServeConfig(max_pending_images=4), observer)

    async def overload() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            accepted = [asyncio.create_task(client.post("/predict", content=picture)) for _ in range(4)]
            async with asyncio.timeout(10):
                while observer.now_pending < 4:
                    await asyncio.sleep(0)
                refused = await asyncio.gather(*(client.post("/predict", content=picture) for _ in range(20)))
            free.set()
            return await asyncio.gather(*accepted), refused

    accepted, refused = asyncio.run(overload())
    assert [response.status_code for response in accepted] == [200] * 4
    for response in refused:
        assert "queue is full (4 pictures)" in problem(response, 503)
        assert int(response.headers["retry-after"]) > 0
    assert observer.reasons == ["Overloaded"] * 20
    assert (observer.most_pending, observer.now_pending, len(observer.answers)) == (4, 0, 4)


def test_a_client_that_hangs_up_gives_its_room_back(classifier: FakeClassifier, observer: Notes, picture: bytes) -> None:
    async def hang(*_: object) -> Classified | Status:
        return await asyncio.Future()

    classifier.classify = hang  # type: ignore[method-assign]
    app = create_app(classifier, ServeConfig(), observer)

    async def hang_up() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            request = asyncio.create_task(client.post("/predict", content=picture))
            async with asyncio.timeout(10):
                while observer.now_pending < 1:
                    await asyncio.sleep(0)
            request.cancel()
            await asyncio.wait([request])

    asyncio.run(hang_up())
    assert observer.now_pending == 0


def test_a_model_that_does_not_answer_in_time_is_a_504_and_a_slow_sender_a_408(classifier: FakeClassifier, picture: bytes) -> None:
    async def hang(*_: object) -> Classified | Status:
        return await asyncio.Future()

    async def trickle() -> AsyncIterator[bytes]:
        yield picture
        await asyncio.Future()

    classifier.classify = hang  # type: ignore[method-assign]
    app = create_app(classifier, ServeConfig(request_timeout_s=0.1), Notes())

    async def ask(content: bytes | AsyncIterator[bytes]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post("/predict", content=content)

    assert "within 0.1 s" in problem(asyncio.run(ask(picture)), 504)
    assert "did not arrive" in problem(asyncio.run(ask(trickle())), 408)


def test_a_dead_replica_is_a_503_and_not_a_500(send: Send, classifier: FakeClassifier, picture: bytes) -> None:
    classifier.failure = UnavailableError("no replica of the model is available; try again")
    assert "try again" in problem(send("POST", "/predict", content=picture), 503)


def test_a_bug_is_a_500_that_keeps_its_details_to_the_log(send: Send, classifier: FakeClassifier, picture: bytes) -> None:
    classifier.failure = RuntimeError("secret path /home/me")
    assert "secret" not in problem(send("POST", "/predict", content=picture), 500)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/predict", 405), ("DELETE", "/health", 405), ("OPTIONS", "/predict", 405)],
)
def test_an_unknown_route_or_method_is_a_problem_document(send: Send, method: str, path: str, status: int) -> None:
    response = send(method, path)
    assert path in problem(response, status) or response.headers["allow"]


def test_the_api_is_described_at_docs_and_openapi_json(send: Send) -> None:
    assert "/predict_batch" in send("GET", "/docs").text
    assert json.loads(send("GET", "/openapi.json").text)["openapi"] == "3.1.0"

"""`POST /explain` and `abstain` over a classifier that needs neither Ray nor a network."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import TypeAdapter

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.inference.preprocess import preprocess
from deployments.http.responses import explanation_png
from deployments.http.routes import create_app
from deployments.predicting import schemas
from deployments.predicting.contract import Explained, ModelInfo, ReplicaLostError, Status
from tests.deployments.test_ingress import PETS, FakeClassifier, Notes, problem

Send = Callable[..., httpx.Response]


class Seer(FakeClassifier):
    """Sees every class in the first pixel, `eel` if it is not told which; black pictures are strange to it."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0

    async def explain(
        self, image: npt.NDArray[np.uint8], reference: str | None, expected: ModelInfo, class_id: int | None
    ) -> Explained | Status:
        status = await self.status(reference)
        if self.lost:
            self.lost -= 1
            raise ReplicaLostError("the replica that processed the picture died; try again")
        if status.model != expected:
            return status
        self.calls.append(image[None])
        heatmap = np.zeros(image.shape[:2], np.float32)
        heatmap[0, 0] = 1
        return Explained(expected, len(expected.class_names) - 1 if class_id is None else class_id, heatmap)


@pytest.fixture
def classifier() -> Seer:
    return Seer()


def sender(classifier: Seer, observer: Notes, **settings: Any) -> Send:
    app = create_app(classifier, ServeConfig(**settings), observer)

    def send(path: str, **request: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.post(path, **request)

        return asyncio.run(once())

    return send


@pytest.fixture
def observer() -> Notes:
    return Notes()


@pytest.fixture
def send(classifier: Seer, observer: Notes) -> Send:
    return sender(classifier, observer)


@pytest.fixture
def black() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def picture_in(response: httpx.Response) -> npt.NDArray[np.uint8]:
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    return np.asarray(Image.open(BytesIO(response.content)))


@pytest.mark.parametrize(
    "request_of",
    [
        lambda data: {"files": {"image": ("frog.jpg", data)}},
        lambda data: {"content": data, "headers": {"content-type": "image/jpeg"}},
        lambda data: {"json": {"image": base64.b64encode(data).decode()}},
    ],
)
def test_the_heat_is_laid_over_the_picture_as_the_network_sees_it(
    send: Send, classifier: Seer, observer: Notes, picture: bytes, request_of: Callable[[bytes], dict[str, Any]]
) -> None:
    response = send("/explain", **request_of(picture))
    pixels = preprocess(picture, 16, "pad")
    [[seen]] = classifier.calls
    np.testing.assert_array_equal(seen, pixels)
    drawn = picture_in(response)
    assert drawn.shape == (224, 224, 3)
    np.testing.assert_array_equal(drawn[28:, 28:], pixels.repeat(14, 0).repeat(14, 1)[28:, 28:])  # cold
    assert np.abs(drawn[:7, :7].astype(int) - pixels[0, 0]).max() > 30  # hot
    headers = {name: response.headers[name] for name in ("X-Model", "X-Class-Id", "X-Class-Name")}
    assert headers == {"X-Model": "pets@3", "X-Class-Id": "2", "X-Class-Name": "eel"}
    assert (observer.most_pending, observer.now_pending) == (1, 0)


def test_numbers_come_instead_of_a_picture_when_asked_for(send: Send, picture: bytes) -> None:
    answer = TypeAdapter(schemas.Explanation).validate_python(
        send("/explain?format=json", content=picture).json(), strict=True, extra="forbid"
    )
    assert (answer["model"], answer["version"], answer["class_id"], answer["class_name"]) == ("pets", 3, 2, "eel")
    assert np.array(answer["heatmap"]).shape == (16, 16)
    assert answer["heatmap"][0][0] == 1


@pytest.mark.parametrize(("asked", "class_id"), [("cat", 0), ("dog", 1), ("1", 1), ("", 2)])
def test_a_class_is_asked_for_by_name_or_id(send: Send, picture: bytes, asked: str, class_id: int) -> None:
    response = send("/explain", params={"class": asked}, content=picture)
    assert (response.headers["X-Class-Id"], response.headers["X-Class-Name"]) == (str(class_id), PETS.class_names[class_id])


@pytest.mark.parametrize("asked", ["fox", "3", "-1", "01", "²", "0000000001", "9" * 30, "cat\n"])
def test_an_unknown_class_is_refused_with_the_list(send: Send, classifier: Seer, picture: bytes, asked: str) -> None:
    detail = problem(send("/explain", params={"class": asked}, content=picture), 400)
    assert detail == f"class {asked!r} of pets@3 not found. Available: cat, dog, eel, or class_id 0–2"
    assert classifier.calls == []


def test_a_name_wins_over_an_id_and_one_that_no_header_can_hold_is_percent_encoded(send: Send, classifier: Seer, picture: bytes) -> None:
    classifier.now = Status(ModelInfo("odd", 1, ("1", "0", "Wölfe, 100 %\r\n狼"), 16, "pad"))
    assert send("/explain?class=1", content=picture).headers["X-Class-Id"] == "0"
    assert send("/explain?class=2", content=picture).headers["X-Class-Name"] == "W%C3%B6lfe, 100 %25%0D%0A%E7%8B%BC"


@pytest.mark.parametrize(("size_px", "side_px"), [(8, 224), (28, 224), (96, 288), (224, 224), (300, 300)])
def test_pixels_are_enlarged_by_a_whole_number_to_at_least_224(size_px: int, side_px: int) -> None:
    explained = Explained(PETS, 0, np.zeros((size_px, size_px), np.float32))
    response = explanation_png(np.zeros((size_px, size_px, 3), np.uint8), explained)
    assert Image.open(BytesIO(response.body)).size == (side_px, side_px)


@pytest.mark.parametrize(
    ("path", "content", "status", "detail"),
    [
        ("/explain?format=gif", None, 400, "format: expected png or json, got 'gif'"),
        ("/explain", b"", 422, "picture"),
        ("/explain", b"not a picture", 422, "picture"),
        ("/explain", bytes(10_000_001), 413, "10,000,000"),
        ("/explain?model=fish", None, 404, "model 'fish' not found"),
    ],
)
def test_what_cannot_be_explained_is_refused_as_by_predict(
    send: Send, picture: bytes, path: str, content: bytes | None, status: int, detail: str
) -> None:
    assert detail in problem(send(path, content=picture if content is None else content), status)


def test_the_model_may_be_named_and_is_asked_again_when_it_changed_or_its_replica_died(
    send: Send, classifier: Seer, picture: bytes
) -> None:
    assert send("/explain?model=birds", content=picture).headers["X-Model"] == "birds@1"
    said_before = classifier.status
    old = ModelInfo("pets", 2, ("cat", "dog"), 8, "pad")
    asked: list[str | None] = []

    async def behind(reference: str | None = None) -> Status:
        asked.append(reference)
        return Status(old) if len(asked) == 1 else await said_before(reference)

    classifier.status = behind  # type: ignore[method-assign]
    classifier.lost = 1
    assert send("/explain", content=picture).headers["X-Model"] == "pets@3"
    classifier.lost = 9
    assert "try again" in problem(send("/explain", content=picture), 503)


def test_a_full_queue_and_a_silent_model_refuse_explanations_too(classifier: Seer, observer: Notes, picture: bytes) -> None:
    async def hang(*_: object) -> Explained | Status:
        return await asyncio.Future()

    classifier.explain = hang  # type: ignore[method-assign]
    assert "within 0.1 s" in problem(sender(classifier, observer, request_timeout_s=0.1)("/explain", content=picture), 504)
    assert observer.now_pending == 0


@pytest.mark.parametrize("switch", [True, False])
def test_a_strange_picture_is_said_to_be_one_and_its_probabilities_are_listed_all_the_same(
    classifier: Seer, observer: Notes, picture: bytes, black: bytes, switch: bool
) -> None:
    send = sender(classifier, observer, abstain=switch)
    strange = send("/predict", content=black).json()
    assert (strange["abstain"], len(strange["probabilities"])) == (switch, 3)
    assert send("/predict", content=picture).json()["abstain"] is False
    files = [("images", (f"{i}.png", data)) for i, data in enumerate([picture, b"torn", black])]
    answers = send("/predict_batch", files=files).json()["predictions"]
    assert [answer.get("abstain") for answer in answers] == [False, None, switch]
    assert list(strange)[2:6] == ["class_id", "class_name", "confidence", "abstain"]

"""The client against the real HTTP side over a real socket; the model behind it is made up."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from cifar_ray import __main__ as console
from cifar_ray import client as client_module
from cifar_ray.client import KEY_VARIABLE, Client, Prediction
from cifar_ray.config.api_keys import ApiKey, new_key, sha256_of, write_keys
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import ConfigError, ImageError, ImageTooLargeError, ServerError
from deployments.http.routes import create_app
from deployments.predicting.contract import Status
from tests.deployments.conftest import Served, make_picture
from tests.deployments.test_explain_route import Seer
from tests.deployments.test_ingress import FakeClassifier, Notes

KEY = new_key()


@pytest.fixture(scope="module")
def picture() -> bytes:
    return make_picture()


@pytest.fixture(scope="module")
def classifier() -> FakeClassifier:
    return Seer()


@pytest.fixture(scope="module")
def url(classifier: FakeClassifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for a key."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    write_keys(file, [ApiKey("tests", sha256_of(KEY.encode()), "unlimited")])
    with Served(create_app(classifier, ServeConfig(api_keys=file), Notes())) as served:
        yield served.url


def test_a_picture_is_a_path_or_its_content(url: str, picture: bytes, tmp_path: Path) -> None:
    path = tmp_path / "frog.jpg"
    path.write_bytes(picture)
    client = Client(url, KEY)
    for sent in (picture, path, str(path)):
        answer = client.predict(sent, top_k=2)
        assert (answer.model, answer.version, answer.class_id, answer.class_name) == ("pets", 3, 2, "eel")
        assert answer.confidence == answer.probabilities["eel"]
        assert answer.top_k == [("eel", answer.confidence), ("dog", answer.probabilities["dog"])]
        assert answer.answer["timings_ms"]["total"] > 0
        assert answer.abstain is False
        assert answer.labels == ["eel"]


def test_a_model_with_several_labels_gives_those_above_their_thresholds(url: str, picture: bytes) -> None:
    assert Client(f"{url}?model=scenes", KEY).predict(picture).labels == ["night"]


def test_in_a_batch_a_bad_picture_has_its_error_in_its_place(url: str, picture: bytes) -> None:
    first, broken, large, last = Client(url, KEY).predict_batch([picture, ("torn.jpg", picture[:99]), bytes(10_000_001), picture])
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert (type(broken), type(large)) == (ImageError, ImageTooLargeError)


def test_a_file_name_that_is_no_utf_8_is_sent_with_question_marks(url: str, picture: bytes) -> None:
    for name, shown in (("\udce9.jpg", "?.jpg"), ("\ud800.jpg", "?.jpg"), ("é.jpg", "é.jpg")):
        [answer] = Client(url, KEY).predict_batch([(name, picture)])
        assert isinstance(answer, Prediction)
        assert answer.answer["filename"] == shown
        assert isinstance(Client(url, KEY).predict_batch([(name, b"x")])[0], ImageError)


@pytest.mark.parametrize("suffix", ["", ".csv", ".json", ".parquet"])
def test_a_folder_of_names_that_are_no_utf_8_is_predicted_by_a_server(
    url: str, picture: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    (tmp_path / "old").mkdir()
    for name in (b"caf\xe9.jpg", b"torn\xe9.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/old/" + name)).write_bytes(picture if name.startswith(b"caf") else b"torn")
    out = tmp_path / f"rows{suffix}"
    assert console.main(["predict", url, str(tmp_path / "old"), *(["--out", str(out)] if suffix else [])]) == 0
    assert not suffix or out.stat().st_size


def test_an_explanation_is_a_picture_and_an_unknown_class_is_refused(url: str, picture: bytes) -> None:
    client = Client(url, KEY)
    assert client.explain(picture)[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ServerError, match="class 'cow' of pets@3 not found"):
        client.explain(picture, "cow")


def test_what_a_server_says_of_itself(url: str) -> None:
    client = Client(url, KEY)
    classes = client.classes()
    assert (classes.model, classes.version, classes.names) == ("pets", 3, ["cat", "dog", "eel"])
    assert client.models()["default"] == "pets@3"
    assert client.ready() is True
    assert Client(f"{url}/?model=birds", KEY).classes().names == ["jay", "tit"]


def test_ready_is_false_while_no_model_answers_and_is_asked_once(url: str, classifier: FakeClassifier, monkeypatch: Any) -> None:
    monkeypatch.setattr(client_module, "time", SimpleNamespace(sleep=lambda _: pytest.fail("waited")))
    monkeypatch.setattr(classifier, "now", Status(None, "none yet"))
    assert Client(url, KEY).ready() is False


@pytest.mark.parametrize(
    ("sent", "kind", "reason"),
    [
        (b"", ImageError, "empty"),
        (bytes(10_000_001), ImageTooLargeError, "10,000,000 bytes"),
        ("no/such.jpg", ImageError, "No such file"),
        ("\ud800.jpg", ImageError, "surrogates"),
    ],
)
def test_a_picture_that_cannot_be_used_is_an_image_error(url: str, sent: bytes | str, kind: type[ImageError], reason: str) -> None:
    with pytest.raises(kind, match=reason) as refused:
        Client(url, KEY).predict(sent)
    assert type(refused.value) is kind


def test_other_refusals_are_server_errors_with_their_status(url: str, picture: bytes) -> None:
    for client, status, reason in (
        (Client(url), 401, "API key missing"),
        (Client(url, "wrong"), 401, "unknown API key"),
        (Client(f"{url}?model=fish", KEY), 404, "model 'fish' not found"),
        (Client(f"{url}/elsewhere", KEY), 404, "/elsewhere/predict not found"),
    ):
        with pytest.raises(ServerError, match=reason) as refused:
            client.predict(picture)
        assert refused.value.status == status


@pytest.mark.parametrize(
    "url",
    [
        "http://h:99999",
        "http://h:x",
        "http://h:0",
        "http://[::1",
        "ftp://h",
        "h:8000",
        "h:1/a:b",
        "http://",
        "",
        "http://a b",
        "http://h/é",
        "http://a..b:1",
        "http://.:1",
        f"http://{'a' * 300}:1",
        "http://h:1\n",
        "http://h:1\r\nX: y",
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ConfigError, match="expected the address of a server") as refused:
        Client(url)
    assert len(str(refused.value).splitlines()) == 1


def test_the_key_may_be_in_the_environment_and_is_in_no_message(url: str, picture: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert Client(url).predict(picture).class_name == "eel"
    with pytest.raises(ServerError) as refused:
        Client(f"{url}?model=fish").predict(picture)
    assert KEY not in str(refused.value)
    with pytest.raises(ConfigError, match="printable") as impossible:
        Client(url, "a\nsecret")
    assert "secret" not in str(impossible.value)


def answering(statuses: list[int], retry_after: str | None, picture_answer: dict[str, Any]) -> Starlette:
    """Answers with each status in turn."""

    async def answer(request: Request) -> Response:
        status = statuses.pop(0)
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        return JSONResponse(picture_answer if status == 200 else {"detail": "wait"}, status, headers)

    app = Starlette()
    app.add_route("/classes", answer)
    return app


@pytest.mark.parametrize(("retry_after", "waited_s"), [("3", 3.0), ("3600", 10.0), (None, 1.0), ("soon", 1.0)])
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_within_bounds(monkeypatch: Any, status: int, retry_after: str | None, waited_s: float) -> None:
    waits: list[float] = []
    monkeypatch.setattr(client_module, "time", SimpleNamespace(sleep=waits.append))
    answer = {"model": "pets", "version": 1, "classes": []}
    with Served(answering([status, status, 200], retry_after, answer)) as served:
        assert Client(served.url).classes().model == "pets"
        assert waits == [waited_s] * 2
    with Served(answering([status] * 6, retry_after, answer)) as served, pytest.raises(ServerError, match=f"{status}: wait"):
        Client(served.url).classes()


def test_a_server_that_is_silent_or_another_one_is_a_server_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerError, match="no response"):
        Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.1).classes()
    app = Starlette()
    app.add_route("/classes", lambda _: PlainTextResponse("hello"))
    with Served(app) as served, pytest.raises(ServerError, match="not JSON"):
        Client(served.url).classes()

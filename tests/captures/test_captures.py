"""Pictures of requests: kept only if the operator wants it, bounded, deletable, and labelled without a loss."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cifar_ray import cli
from cifar_ray.captures import capture_files
from cifar_ray.captures.capture_files import Capture, Captures
from cifar_ray.captures.review_table import as_parquet, is_held_out, labelled
from cifar_ray.captures.reviews import Reviews
from cifar_ray.config.api_keys import Scope, add_key
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.review import main
from cifar_ray.storage import FileTree
from deployments.capturing import recorder
from deployments.capturing.recorder import Recorder
from deployments.http.routes import create_app
from deployments.predicting.contract import Classified
from deployments.predicting.pipeline import Outcome, Row
from deployments.predicting.sender import Sender
from tests.deployments.conftest import make_picture
from tests.deployments.test_ingress import PETS, FakeClassifier, Notes, problem

PICTURE = make_picture()
SURE, UNSURE = np.array([0.05, 0.05, 0.9], np.float32), np.array([0.3, 0.4, 0.3], np.float32)
NOW = datetime(2026, 11, 28, 9, 30, tzinfo=UTC)


def capture(request: str = "a", index: int = 0, confidence: float = 0.9, picture: bytes = PICTURE, **changes: Any) -> Capture:
    values = {"model": "pets@3", "predicted": "eel", "abstains": False, "disagrees": False} | changes
    return Capture(request, index, NOW, confidence=confidence, picture=picture, **values)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return str(tmp_path / "storage")


def sender(request_id: str | None) -> Sender:
    return Sender(httpx.Headers({} if request_id is None else {"X-Request-Id": request_id.encode()}), "X-Client-Id", None)


def outcome(*rows: Row) -> Outcome:
    probabilities = np.stack([row.probabilities for row in rows if isinstance(row, Row)])
    answer = Classified(PETS, probabilities, np.zeros(len(probabilities), np.bool_), len(probabilities), 0.0)
    return Outcome(PETS, list(rows), {"decode": 0, "queue": 0, "inference": 0, "total": 0}, answer)


def record(storage: str, offers: list[Outcome], **settings: Any) -> list[Capture]:
    """What is kept of these answers."""

    async def offer_all() -> None:
        recorder = Recorder(ServeConfig(storage=storage, **settings), Captures(storage))
        for number, one in enumerate(offers):
            recorder.offer(sender(f"r{number}"), [PICTURE] * len(one.rows), one)
        await recorder.flush()

    asyncio.run(offer_all())
    return Captures(storage).all()


def test_nothing_is_kept_unless_the_operator_wants_it(storage: str) -> None:
    assert record(storage, [outcome(Row(SURE, False))] * 50) == []
    assert not Path(storage).exists()


def test_a_part_of_the_requests_is_kept_with_the_answer(storage: str) -> None:
    kept = record(storage, [outcome(Row(SURE, False), Row(UNSURE, True))] * 400, capture=0.25)
    requests = {one.request_id for one in kept}
    assert abs(len(requests) - 100) < 3 * (400 * 0.25 * 0.75) ** 0.5
    assert len(kept) == 2 * len(requests)
    first, second = (next(one for one in kept if one.index == index) for index in (0, 1))
    assert (first.predicted, first.abstains, first.model) == ("eel", False, "pets@3")
    assert (second.predicted, second.abstains) == ("dog", True)
    assert first.confidence == pytest.approx(0.9)
    found = Captures(storage).find(first.key)
    assert found is not None
    assert found.picture == PICTURE


def test_only_what_the_model_is_unsure_of_can_be_kept(storage: str) -> None:
    offers = [outcome(Row(SURE, False)), outcome(Row(UNSURE, False)), outcome(Row(SURE, True))]
    assert [one.request_id for one in record(storage, offers, capture=1, capture_only="unsure")] == ["r1", "r2"]


def test_pictures_on_which_versions_disagree_are_kept(storage: str) -> None:
    async def offer() -> None:
        recorder = Recorder(ServeConfig(storage=storage, capture=1, capture_only="unsure"), Captures(storage))
        recorder.offer(sender("one"), [PICTURE], outcome(Row(SURE, False)), disagrees=True)
        await recorder.flush()

    asyncio.run(offer())
    [kept] = Captures(storage).all()
    assert kept.disagrees


def test_a_slow_storage_costs_pictures_and_no_memory(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MAX_WAITING_BYTES", 3 * len(PICTURE))

    async def offer() -> int:
        kept = Recorder(ServeConfig(storage=storage, capture=1), Captures(storage))
        for number in range(10):
            kept.offer(sender(str(number)), [PICTURE], outcome(Row(SURE, False)))
        await kept.flush()
        return kept.dropped

    assert asyncio.run(offer()) == 7
    assert len(Captures(storage).all()) == 3


def test_a_storage_that_cannot_be_written_is_logged_once_and_fails_no_request(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    Path(storage).mkdir()
    Path(storage, "captures").write_text("a file in the way")

    async def offer() -> int:
        kept = Recorder(ServeConfig(storage=storage, capture=1), Captures(storage, timeout_s=0))
        for _ in range(2):
            kept.offer(sender("a"), [PICTURE], outcome(Row(SURE, False)))
            await kept.flush()
        return kept.dropped

    with caplog.at_level("WARNING"):
        assert asyncio.run(offer()) == 2
    assert len([one for one in caplog.records if "cannot be written" in one.message]) == 1


def test_a_file_is_written_when_it_is_full_or_after_ten_seconds(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_SHARD_S", 0.01)

    async def offer() -> None:
        kept = Recorder(ServeConfig(storage=storage, capture=1), Captures(storage))
        kept.offer(sender("a"), [PICTURE], outcome(Row(SURE, False)))
        for _ in range(500):
            await asyncio.sleep(0.01)
            if Captures(storage).all():
                break

    asyncio.run(offer())
    assert len(Captures(storage).all()) == 1


@pytest.mark.parametrize("sent", [None, "", "../../etc/passwd", "a" * 101, "a b", "a#1", "ä"])
def test_an_id_that_is_not_fit_for_a_file_is_replaced(sent: str | None) -> None:
    assert len(sender(sent).request_id) == 32
    assert sender("rBOQ7vGm.1_2-3").request_id == "rBOQ7vGm.1_2-3"


def test_the_oldest_files_go_first_when_there_are_too_many_bytes_or_days(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captures, now_ns = Captures(storage), time.time_ns()
    for hours in (50, 40, 30):
        monkeypatch.setattr(capture_files.time, "time_ns", lambda hours=hours: now_ns - hours * 3_600_000_000_000)
        captures.write([capture(str(hours), picture=bytes(np.random.default_rng(hours).bytes(40_000)))])
    monkeypatch.setattr(capture_files.time, "time_ns", lambda: now_ns)
    assert captures.expire(10**9, 100 * 3600) == 0
    assert captures.expire(10**9, 45 * 3600) == 1
    assert captures.expire(50_000, 100 * 3600) == 1
    assert [one.request_id for one in captures.all()] == ["30"]


def test_deletion_deletes_the_pictures_from_every_file_and_nothing_else(storage: str) -> None:
    captures = Captures(storage)
    secret = b"secret picture of a person" * 10
    captures.write([capture("a"), capture("b", picture=secret), capture("b", 1, picture=secret)])
    captures.write([capture("b", 2, picture=secret)])
    assert captures.delete({"b"}) == 3
    assert captures.delete({"b"}) == 0
    assert [one.key for one in captures.all()] == ["a#0"]
    assert not [path for path in Path(storage).rglob("*") if path.is_file() and secret[:26] in path.read_bytes()]


def test_a_damaged_file_hides_no_other(storage: str) -> None:
    captures = Captures(storage)
    captures.write([capture("a")])
    captures.write([capture("b")])
    first = sorted(Path(storage, "captures").iterdir())[0]
    first.write_bytes(first.read_bytes()[:-20])
    assert len(captures.all()) == len(Captures(storage).all()) == 1
    assert captures.delete({"nobody"}) == 0
    assert first.exists(), "nobody asked to delete it"


def test_a_picture_that_was_kept_again_because_versions_disagree_counts_once(storage: str) -> None:
    captures = Captures(storage)
    captures.write([capture("a"), capture("b")])
    captures.write([capture("a", disagrees=True)])
    assert [(one.key, one.disagrees) for one in captures.all()] == [("a#0", True), ("b#0", False)]


def test_looking_for_an_unknown_picture_reads_no_file_again(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or any client could make a server read all captured pictures with each request."""
    captures = Captures(storage)
    captures.write([capture("a")])
    assert captures.find("b#0") is None
    monkeypatch.setattr(FileTree, "read", lambda *_: pytest.fail("a file was read again"))
    assert captures.find("b#0") is None


def test_a_server_holds_no_reviewed_picture_in_memory(storage: str) -> None:
    reviews = Reviews(storage)
    reviews.add("a#0", "cat", "alice", capture())
    assert {review.picture for review in reviews.all()} == {""}
    assert reviews.current(with_pictures=True)["a#0"].content == PICTURE


def test_the_last_decision_counts_a_reviewer_beats_a_client_and_undo_takes_it_back(storage: str) -> None:
    reviews, one = Reviews(storage), capture()
    reviews.add("a#0", "cat", "client", one, source="feedback")
    assert reviews.current()["a#0"].label == "cat"
    reviews.add("a#0", "dog", "alice", one)
    reviews.add("a#0", "eel", "client", one, source="feedback")
    assert reviews.current()["a#0"].label == "dog"
    reviews.add("a#0", "eel", "bob", one)
    assert (reviews.current()["a#0"].label, reviews.current()["a#0"].by) == ("eel", "bob")
    reviews.add("a#0", "", "bob", one, undone=True)
    assert reviews.current() == {}
    assert len(Reviews(storage).all()) == 5, "nothing is overwritten"


def test_several_reviewers_at_once_lose_nothing(storage: str) -> None:
    def work(name: str) -> None:
        mine = Reviews(storage)
        for number in range(20):
            mine.add(f"{name}{number}#0", "cat", name, None)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Reviews(storage).current()) == 60


def test_labelled_pictures_become_a_table_that_training_reads_after_the_captures_have_expired(storage: str, tmp_path: Path) -> None:
    captures, reviews = Captures(storage), Reviews(storage)
    captures.write([capture(name, picture=make_jpeg(number)) for number, name in enumerate("abcdef")])
    for name, label in zip("abcdef", ("cat", "dog", "cat", "dog", "", "cat"), strict=True):
        reviews.add(f"{name}#0", label, "alice", captures.find(f"{name}#0"))
    reviews.add("gone#0", "dog", "client", None, source="feedback")
    captures.expire(0, 0)
    found = labelled(captures, reviews)
    assert [one.label for one in found] == ["cat", "dog", "cat", "dog", "cat"]
    path = tmp_path / "reviews.parquet"
    path.write_bytes(as_parquet(found))
    listing = list_pictures(path)
    assert (listing.class_names, len(listing)) == (("cat", "dog"), 5)
    assert pq.read_table(path).column("image")[0]["bytes"].as_py() == make_jpeg(0)


def test_a_table_with_several_labels_has_lists_and_pictures_without_any_label(storage: str, tmp_path: Path) -> None:
    captures, reviews = Captures(storage), Reviews(storage)
    captures.write([capture(name, picture=make_jpeg(number)) for number, name in enumerate("abc")])
    for name, label in zip("abc", ("sea, beach", "", "sea"), strict=True):
        reviews.add(f"{name}#0", label, "alice", captures.find(f"{name}#0"))
    path = tmp_path / "reviews.parquet"
    path.write_bytes(as_parquet(labelled(captures, reviews, several_labels=True), several_labels=True))
    assert pq.read_table(path).column("label").to_pylist() == [["sea", "beach"], [], ["sea"]]
    listing = list_pictures(path)
    assert (listing.class_names, len(listing)) == (("beach", "sea"), 3)


def test_feedback_that_came_before_its_picture_was_written_gets_it_later(storage: str) -> None:
    captures, reviews = Captures(storage), Reviews(storage)
    reviews.add("a#0", "dog", "client", None, source="feedback")
    assert labelled(captures, reviews) == []
    captures.write([capture()])
    [one] = labelled(captures, reviews)
    assert (one.content, one.predicted) == (PICTURE, "eel")


def test_a_fifth_is_held_out_and_always_the_same(storage: str) -> None:
    reviews = [Reviews(storage).add(f"{number}#0", "cat", "alice", None) for number in range(300)]
    out = [is_held_out(one) for one in reviews]
    assert 35 <= sum(out) <= 85
    assert out == [is_held_out(one) for one in reviews]


def make_jpeg(seed: int) -> bytes:
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(jpeg, "JPEG")
    return jpeg.getvalue()


class Door:
    """A server with one key of each scope."""

    def __init__(self, storage: str, folder: Path, **settings: Any) -> None:
        self.file = folder / "keys.txt"
        scopes: tuple[Scope, ...] = ("predict", "review", "admin")
        self.keys = {scope: add_key(self.file, scope, None, scope) for scope in scopes}
        self.app = create_app(FakeClassifier(), ServeConfig(storage=storage, api_keys=self.file, **settings), Notes())

    def send(self, scope: str | None, method: str, path: str, **request: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                headers = {"X-API-Key": self.keys[scope]} if scope else {}
                return await client.request(method, path, headers=headers | request.pop("headers", {}), **request)

        return asyncio.run(once())


@pytest.fixture
def door(storage: str, tmp_path: Path) -> Door:
    Captures(storage).write([capture("a"), capture("b", confidence=0.4), capture("c", disagrees=True), capture("d", abstains=True)])
    return Door(storage, tmp_path)


def test_reviewers_see_first_what_the_model_is_unsure_of(door: Door) -> None:
    answer = door.send("review", "GET", "/captures").json()
    assert [one["key"] for one in answer["captures"]] == ["c#0", "d#0", "b#0", "a#0"]
    assert (answer["num_open"], answer["num_reviewed"]) == (4, 0)
    assert len(door.send("review", "GET", "/captures?limit=2").json()["captures"]) == 2


def test_a_picture_is_shown_as_a_jpeg_of_ours(door: Door, storage: str) -> None:
    answer = door.send("review", "GET", "/captures/picture", params={"key": "a#0"})
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (448, 448)
    Captures(storage).write([capture("page", picture=b"<script>alert(1)</script>")])
    assert "cannot be shown" in problem(door.send("review", "GET", "/captures/picture", params={"key": "page#0"}), 404)


def test_a_label_is_written_changed_and_taken_back(door: Door, storage: str) -> None:
    answer = door.send("review", "POST", "/reviews", json={"key": "b#0", "label": "dog"})
    assert answer.json()["label"] == "dog"
    listed = door.send("review", "GET", "/captures").json()
    assert (listed["num_open"], listed["num_reviewed"]) == (3, 1)
    [done] = door.send("review", "GET", "/captures?reviewed=true").json()["captures"]
    assert (done["key"], done["label"], done["reviewed_by"]) == ("b#0", "dog", "review")
    door.send("review", "POST", "/reviews", json={"key": "b#0", "undo": True})
    assert door.send("review", "GET", "/captures").json()["num_open"] == 4


def test_feedback_names_a_request_and_reaches_the_reviews(door: Door, storage: str) -> None:
    assert door.send("predict", "POST", "/feedback", json={"request_id": "a", "label": "cat"}).json()["captured"]
    assert not door.send("predict", "POST", "/feedback", json={"request_id": "unknown", "label": "cat"}).json()["captured"]
    assert Reviews(storage).current()["a#0"].source == "feedback"


def test_deletion_over_http_deletes_pictures_and_labels(door: Door, storage: str) -> None:
    door.send("review", "POST", "/reviews", json={"key": "b#0", "label": "dog"})
    assert door.send("admin", "DELETE", "/captures/b").json() == {"pictures": 1, "reviews": 1}
    assert Reviews(storage).all() == []
    assert len(Captures(storage).all()) == 3


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        (None, "GET", "/captures", 401),
        ("predict", "GET", "/captures", 403),
        ("predict", "GET", "/captures/picture?key=a%230", 403),
        ("predict", "POST", "/reviews", 403),
        ("review", "DELETE", "/captures/a", 403),
        ("predict", "DELETE", "/captures/a", 403),
        (None, "POST", "/feedback", 401),
    ],
)
def test_a_key_may_do_what_its_scope_says(door: Door, scope: str | None, method: str, path: str, status: int) -> None:
    problem(door.send(scope, method, path, json={"key": "a#0", "label": "cat"} if method == "POST" else None), status)


def test_without_keys_nobody_sees_a_picture(storage: str, tmp_path: Path) -> None:
    Captures(storage).write([capture("a")])
    door = Door(storage, tmp_path)
    door.app = create_app(FakeClassifier(), ServeConfig(storage=storage), Notes())
    for method, path in (("GET", "/captures"), ("GET", "/captures/picture?key=a%230"), ("POST", "/feedback"), ("DELETE", "/captures/a")):
        assert "the server has none" in problem(door.send(None, method, path), 403)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/reviews", b"no json", "not as expected"),
        ("/reviews", json.dumps({"key": "../a#0", "label": "cat"}), "key"),
        ("/reviews", json.dumps({"key": "a#0", "label": "c\nat"}), "label"),
        ("/reviews", json.dumps({"key": "a#0", "label": "cat", "more": 1}), "more"),
        ("/feedback", json.dumps({"request_id": "a/b", "label": "cat"}), "request_id"),
        ("/feedback", json.dumps({"request_id": "a", "label": ""}), "label"),
        ("/feedback", json.dumps({"request_id": "a", "label": "cat", "index": 256}), "index"),
    ],
)
def test_a_wrong_body_is_refused_in_one_line(door: Door, path: str, body: Any, message: str) -> None:
    assert message in problem(door.send("review", "POST", path, content=body), 400)


def test_an_unknown_picture_is_a_404_and_a_long_body_a_413(door: Door) -> None:
    problem(door.send("review", "POST", "/reviews", json={"key": "gone#0", "label": "cat"}), 404)
    problem(door.send("review", "GET", "/captures/picture?key=../../etc/passwd"), 404)
    problem(door.send("review", "POST", "/reviews", content=b"x" * 20_000), 413)
    problem(door.send("review", "GET", "/captures?limit=0"), 400)


def test_answers_of_a_capturing_server_can_be_reviewed(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_SHARD_PICTURES", 1)
    door = Door(storage, tmp_path, capture=1)
    door.send("predict", "POST", "/predict", content=PICTURE, headers={"X-Request-Id": "frog-1"})
    for _ in range(500):
        if Captures(storage).all():
            break
        time.sleep(0.01)
    assert [one.key for one in Captures(storage).all()] == ["frog-1#0"]


def run(*argv: str) -> int:
    return cli.run(lambda: main(list(argv)))


def test_the_commands_list_export_and_delete(door: Door, storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "out.parquet")
    assert run("captures", "--storage", storage) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["c#0", "d#0", "b#0", "a#0"]
    assert "versions disagree" in lines[1]
    assert lines[-1].startswith("4 pictures, 4 without a label")
    assert run("export", target, "--storage", storage) == 2
    assert "no captured picture has a label yet" in capsys.readouterr().err
    Reviews(storage).add("a#0", "cat", "alice", Captures(storage).find("a#0"))
    Reviews(storage).add("b#0", "dog", "alice", Captures(storage).find("b#0"))
    assert run("export", target, "--storage", storage) == 0
    assert "2 pictures of 2 classes" in capsys.readouterr().out
    assert len(list_pictures(Path(target))) == 2
    assert run("delete", "a", "--storage", storage) == 0
    assert run("delete", "a", "--storage", storage) == 2
    assert len(Captures(storage).all()) == 3

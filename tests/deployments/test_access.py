"""Keys, limits, other sites and headers, around the routes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from cifar_ray import keys
from cifar_ray.config import parse_config
from cifar_ray.config.api_keys import KEYS_VARIABLE, ApiKey, new_key, sha256_of, write_keys
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.errors import ConfigError
from deployments.http import access
from deployments.http.access import KeyRing, page_policy
from deployments.http.rate_limits import TokenBuckets
from deployments.http.routes import create_app
from deployments.protocols.protocol_server import ProtocolServer
from deployments.replicas.ingress_replica import SharedLimits
from tests.deployments.test_ingress import FakeClassifier, Notes, problem

Shown = pytest.CaptureFixture[str]

KEY, REVOKED_KEY, SLOW_KEY = new_key(), new_key(), new_key()


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three keys."""
    path = tmp_path / "keys.txt"
    limits = {"laptop": (KEY, "unlimited"), "gone": (REVOKED_KEY, "revoked"), "slow": (SLOW_KEY, "60")}
    write_keys(path, [ApiKey(name, sha256_of(key.encode()), limit) for name, (key, limit) in limits.items()])
    return path


def send(app: Starlette, method: str, path: str, **request: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **request)

    return asyncio.run(once())


def app_with(observer: Notes | None = None, **settings: Any) -> Starlette:
    return ProtocolServer(FakeClassifier(), ServeConfig(**settings), observer or Notes()).http_app


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": KEY}, {"x-api-key": KEY}]
)
def test_a_key_opens_the_door_however_it_is_sent(file: Path, picture: bytes, headers: dict[str, str]) -> None:
    app = app_with(api_keys=file)
    assert send(app, "POST", "/predict", content=picture, headers=headers).status_code == 200
    assert send(app, "GET", "/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "challenge"),
    [
        ({}, 401, 'Bearer realm="cifar_ray"'),
        ({"Authorization": "Basic eDp5"}, 401, 'Bearer realm="cifar_ray"'),
        ({"Authorization": "Bearer "}, 401, 'Bearer realm="cifar_ray", error="invalid_token"'),
        ({"X-API-Key": "wrong"}, 401, 'Bearer realm="cifar_ray", error="invalid_token"'),
        ({"X-API-Key": KEY[:-1]}, 401, 'Bearer realm="cifar_ray", error="invalid_token"'),
        ({"X-API-Key": "é".encode()}, 401, 'Bearer realm="cifar_ray", error="invalid_token"'),
        ({"X-API-Key": REVOKED_KEY}, 403, None),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict_base64", "/predict_batch", "/classes", "/models", "/nothing", "/health/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_valid_key_nothing_is_done(
    file: Path, method: str, path: str, headers: dict[str, str], status: int, challenge: str | None
) -> None:
    observer = Notes()
    response = send(app_with(observer, api_keys=file), method, path, headers=headers)
    assert "key" in problem(response, status)
    assert response.headers.get("www-authenticate") == challenge
    assert len(observer.reasons) == 1


@pytest.mark.parametrize("path", sorted(access.OPEN_PATHS))
def test_what_needs_no_key(file: Path, path: str) -> None:
    assert send(app_with(api_keys=file), "GET", path).status_code < 400


@pytest.mark.parametrize("prefix", ["", "/p", "/a:b"])
@pytest.mark.parametrize("path", ["", "/", "/health", "/health/", "/docs/", "/ready/", "/openapi.json/"])
def test_an_open_path_is_open_with_a_slash_and_without_and_below_a_prefix(file: Path, prefix: str, path: str) -> None:
    async def once() -> int:
        transport = httpx.ASGITransport(app_with(api_keys=file), root_path=prefix)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.get(prefix + path)).status_code

    assert asyncio.run(once()) in (200, 307)


@pytest.mark.parametrize("path", ["/models/", "/healthy", "/health/x", "/docs/../models"])
def test_a_slash_opens_nothing_else(file: Path, path: str) -> None:
    assert send(app_with(api_keys=file), "GET", path).status_code == 401


def test_a_server_without_keys_asks_for_none(picture: bytes) -> None:
    assert send(app_with(), "POST", "/predict", content=picture, headers={"X-API-Key": "any"}).status_code == 200


def answers(ring: KeyRing, key: str, count: int) -> list[HTTPException | None]:
    async def ask() -> list[HTTPException | None]:
        admitted = [await ring.admit([(b"x-api-key", key.encode())]) for _ in range(count)]
        return [one if isinstance(one, HTTPException) else None for one in admitted]

    return asyncio.run(ask())


def test_a_key_has_its_requests_a_minute_and_is_told_when_to_come_back(file: Path) -> None:
    clock = Clock()
    ring = KeyRing(file, TokenBuckets(clock), clock)
    assert answers(ring, SLOW_KEY, 60) == [None] * 60
    [refusal] = answers(ring, SLOW_KEY, 1)
    assert refusal is not None
    assert (refusal.status_code, refusal.headers) == (429, {"Retry-After": "1"})
    assert answers(ring, KEY, 1) == [None]
    clock.now_s += 10
    assert answers(ring, SLOW_KEY, 11).count(None) == 10
    clock.now_s += 3600
    assert answers(ring, SLOW_KEY, 61).count(None) == 60


class Away:
    """A handle of a deployment that has no replica."""

    @property
    def wait_s(self) -> Away:
        return self

    async def remote(self, *_: object) -> float:
        raise RayActorError


class Shared(Away):
    """A handle of a deployment that holds these buckets."""

    def __init__(self, buckets: TokenBuckets) -> None:
        self._buckets = buckets

    async def remote(self, *arguments: Any) -> float:
        return await self._buckets.wait_s(*arguments)


@pytest.mark.parametrize("limit", [60, 1])
def test_two_ingress_replicas_together_hold_the_limit_of_a_key_and_one_alone_has_all_of_it(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "keys.txt"
    write_keys(path, [ApiKey("slow", sha256_of(SLOW_KEY.encode()), str(limit))])
    clock = Clock()
    buckets: Any = Shared(TokenBuckets(clock))
    first, second = (KeyRing(path, SharedLimits(buckets, replicas=2), clock) for _ in range(2))
    assert answers(first, SLOW_KEY, limit) == [None] * limit
    assert [answers(ring, SLOW_KEY, 1) == [None] for ring in (first, second)] == [False, False]
    clock.now_s += 120
    granted = [answers(ring, SLOW_KEY, 1) == [None] for _ in range(limit) for ring in (first, second)]
    assert sum(granted) == limit


def test_while_the_shared_limits_are_away_a_replica_grants_its_share(file: Path) -> None:
    away: Any = Away()
    assert answers(KeyRing(file, SharedLimits(away, replicas=4)), SLOW_KEY, 60).count(None) == 15


def test_a_key_that_is_added_or_revoked_counts_without_a_restart(file: Path, capsys: Shown) -> None:
    clock = Clock()
    ring = KeyRing(file, TokenBuckets(clock), clock)
    assert keys.main(["add", "phone", "--file", str(file)]) == 0
    added = capsys.readouterr().out.strip()
    assert answers(ring, added, 1) != [None]
    clock.now_s += 1
    assert answers(ring, added, 1) == [None]
    assert keys.main(["revoke", "phone", "--file", str(file)]) == 0
    clock.now_s += 1
    [refusal] = answers(ring, added, 1)
    assert refusal is not None
    assert refusal.status_code == 403


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("nonsense")])
def test_a_file_that_is_damaged_later_changes_nothing_and_is_logged_once(
    file: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access.logger, "propagate", True)
    clock = Clock()
    ring = KeyRing(file, TokenBuckets(clock), clock)
    damage(file)
    if file.exists():
        os.utime(file, ns=(1, 1))
    for _ in range(3):
        clock.now_s += 1
        assert answers(ring, KEY, 1) == [None]
        assert answers(ring, "unknown", 1) != [None]
    assert len({record.created for record in caplog.records}) == 1


def test_a_key_is_in_no_log_and_no_answer(file: Path, picture: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    classifier = FakeClassifier()
    app = create_app(classifier, ServeConfig(api_keys=file), Notes())
    answers = []
    for key in (KEY, REVOKED_KEY, SLOW_KEY, "wrong-but-secret"):
        for name, value in {"Authorization": f"Bearer {key}", "X-API-Key": key}.items():
            for failure in (None, RuntimeError("a bug")):
                classifier.failure = failure
                answers.append(send(app, "POST", "/predict", content=picture, headers={name: value}))
                answers.append(send(app, "POST", "/predict", content=b"broken", headers={name: value}))
    assert {answer.status_code for answer in answers} == {200, 401, 403, 422, 500}
    seen = caplog.text + "".join(f"{answer.headers} {answer.text}" for answer in answers)
    for secret in (KEY, REVOKED_KEY, SLOW_KEY, "wrong-but-secret", sha256_of(KEY.encode())):
        assert secret not in seen


def test_the_verb_makes_a_key_prints_it_once_and_keeps_its_hash_for_the_owner_alone(tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "new" / "keys.txt"
    assert keys.main(["add", "laptop", "--requests-per-minute", "600", "--file", str(path)]) == 0
    key = capsys.readouterr().out.strip()
    assert len(key) > 40
    assert key not in path.read_text()
    assert f"laptop {sha256_of(key.encode())} 600\n" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.main(["list", "--file", str(path)]) == 0
    assert capsys.readouterr().out == "laptop  600 requests/min  predict\n"
    with pytest.raises(ConfigError, match="has a key of laptop already"):
        keys.main(["add", "laptop", "--file", str(path)])
    with pytest.raises(ConfigError, match=r"no key of phone\. Available: laptop"):
        keys.main(["revoke", "phone", "--file", str(path)])


@pytest.mark.parametrize("text", ["laptop", "laptop abc 60", f"laptop {'a' * 64} 0", f"laptop {'a' * 64} 60 x", f"../x {'a' * 64} 60"])
def test_a_wrong_line_in_the_file_of_keys_is_named_but_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"# comment\n\n{text}\n")
    with pytest.raises(ConfigError, match=rf"^api_keys: {path}, line 3: expected") as refused:
        parse_config(ServeConfig, {"api_keys": path})
    assert text not in str(refused.value)


def test_the_environment_may_name_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, str(file))
    assert ServeConfig().api_keys == file
    monkeypatch.setenv(KEYS_VARIABLE, "nowhere.txt")
    with pytest.raises(ConfigError, match=r"nowhere\.txt cannot be read"):
        parse_config(ServeConfig, {})


def preflight(origin: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-request-id",
    }


def test_pages_of_other_sites_may_read_nothing_unless_they_are_listed(file: Path) -> None:
    here, there = "https://a.example", "https://b.example"
    for settings, allowed in (({}, []), ({"cors_origins": here}, [here]), ({"cors_origins": f"{here}, {there}"}, [here, there])):
        app = app_with(api_keys=file, **settings)
        for origin in (here, there):
            wanted = origin if origin in allowed else None
            for response in (
                send(app, "GET", "/health", headers={"Origin": origin}),
                send(app, "GET", "/models", headers={"Origin": origin}),
            ):
                assert response.headers.get("access-control-allow-origin") == wanted
            asked = send(app, "OPTIONS", "/predict", headers=preflight(origin))
            assert (asked.status_code == 200) == (origin in allowed)
            assert asked.headers.get("access-control-allow-origin") == wanted


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/path", "ftp://a.example", "https://", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        parse_config(ServeConfig, {"cors_origins": origin})


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/nothing"), ("POST", "/predict"), ("GET", "/models")])
def test_every_answer_may_be_framed_sniffed_and_followed_by_nobody(file: Path, method: str, path: str) -> None:
    for app in (app_with(), app_with(api_keys=file)):
        headers = send(app, method, path).headers
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in headers


def test_a_mistake_of_ours_has_the_headers_too() -> None:
    classifier = FakeClassifier()
    classifier.failure = RuntimeError("a bug")
    response = send(create_app(classifier, ServeConfig(), Notes()), "GET", "/models")
    assert (response.status_code, response.headers["x-content-type-options"]) == (500, "nosniff")


def test_a_page_may_run_what_it_brings_and_nothing_else() -> None:
    response = send(app_with(), "GET", "/docs")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["style-src"].startswith("'self' 'sha256-")
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "camera=(self)" in response.headers["permissions-policy"]
    assert response.text.count("<style>") == response.headers["content-security-policy"].count("sha256-")
    assert " style=" not in response.text


def test_the_hash_in_a_policy_is_that_of_the_text_between_the_tags() -> None:
    # the example of CSP level 3, section 8.4
    assert "script-src 'self' 'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=';" in page_policy(
        "<script>alert('Hello, world.');</script>"
    )

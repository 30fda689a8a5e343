"""The page's files and its gallery over HTTP; `tests/web` holds what a browser makes of them."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from cifar_ray.config.serve_config import ServeConfig
from deployments.http.routes import create_app
from tests.deployments.test_ingress import FakeClassifier, Notes

LINK = re.compile(r'(?:src|href)="([^"]+)"')


@pytest.fixture
def classifier() -> FakeClassifier:
    return FakeClassifier()


class Client:
    """Asks an app, and follows where it leads."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def get(self, path: str, method: str = "GET", **request: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server", follow_redirects=True) as client:
                return await client.request(method, path, **request)

        return asyncio.run(once())


@pytest.fixture
def client(classifier: FakeClassifier) -> Client:
    return Client(create_app(classifier, ServeConfig(), Notes()))


def test_the_page_and_all_that_it_links_to_are_there(client: Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    links = set(LINK.findall(page.text))
    assert len(links) > 8
    for link in links:
        assert not link.startswith(("/", "http")), "only what is relative works behind a prefix"
        assert client.get(urljoin("/", link)).status_code == 200


@pytest.mark.parametrize(("ending", "media_type"), [("page.js", "javascript"), ("page.css", "text/css"), ("icon.svg", "image/svg+xml")])
def test_a_file_has_its_type_and_is_asked_for_once(client: Client, ending: str, media_type: str) -> None:
    [link] = [link for link in set(LINK.findall(client.get("/").text)) if link.endswith(ending)]
    response = client.get(urljoin("/", link))
    assert media_type in response.headers["content-type"]
    assert "immutable" in response.headers["cache-control"]
    assert client.get("/" + link.replace(ending, "../../index.html")).status_code == 404


def test_the_page_itself_is_asked_for_each_time_and_sent_when_it_changed(client: Client) -> None:
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get("/", "HEAD").status_code == 200


@pytest.mark.parametrize("root_path", ["/models/of/mine", ""])
def test_it_works_behind_a_prefix(classifier: FakeClassifier, root_path: str) -> None:
    app = Starlette(routes=[Mount(root_path, app=create_app(classifier, ServeConfig(), Notes()))])
    client = Client(app)
    page = client.get(root_path or "/")
    assert str(page.url).endswith("/")
    for link in LINK.findall(page.text):
        assert client.get(urljoin(str(page.url), link)).status_code == 200


def test_the_gallery_is_that_of_the_bundle_and_sent_once(client: Client, classifier: FakeClassifier) -> None:
    assert client.get("/gallery").json() == {"model": "pets", "version": 3, "gallery": None}
    classifier.gallery_file = b'{"split":"test"}'
    response = client.get("/gallery?model=birds")
    assert response.json() == {"model": "birds", "version": 1, "gallery": {"split": "test"}}
    assert client.get("/gallery?model=birds", headers={"If-None-Match": response.headers["etag"]}).status_code == 304
    assert client.get("/gallery", headers={"If-None-Match": response.headers["etag"]}).status_code == 200
    assert client.get("/gallery?model=fish").status_code == 404


def test_the_gallery_can_be_switched_off(classifier: FakeClassifier) -> None:
    classifier.gallery_file = b"secret"
    response = Client(create_app(classifier, ServeConfig(gallery=False), Notes())).get("/gallery")
    assert response.status_code == 403
    assert "gallery=false" in response.json()["detail"]

from __future__ import annotations

import json
import re
from typing import Any

from starlette.routing import Route

from deployments import docs_page, openapi
from deployments.config import ServeConfig
from deployments.contract import Classifier, Observer
from deployments.ingress import create_app


class NoClassifier(Classifier):
    """Never asked."""


class NoObserver(Observer):
    """Never told."""


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_route_is_documented_and_nothing_else() -> None:
    routes = create_app(NoClassifier(), ServeConfig(), NoObserver()).routes
    served = {
        (route.path, method.lower()) for route in routes if isinstance(route, Route) for method in route.methods or () if method != "HEAD"
    }
    documented = {(path, method) for path, item in openapi.document()["paths"].items() for method in item}
    assert served - documented == {("/", "get"), ("/docs", "get"), ("/openapi.json", "get")}
    assert documented <= served


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = openapi.document()
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names == set(document["components"]["schemas"])
    assert json.loads(json.dumps(document)) == document


def test_the_page_shows_every_route_and_shape_and_asks_no_other_host() -> None:
    document = openapi.document()
    page = docs_page.render(document)
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page
    anchors = set(re.findall(r'href="#(\w+)"', page))
    assert anchors <= set(re.findall(r'id="(\w+)"', page))
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)

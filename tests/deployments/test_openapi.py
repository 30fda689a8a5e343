from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from pydantic import TypeAdapter
from starlette.routing import Route

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.inference.preprocess import decode_base64, preprocess
from deployments.http import openapi, openapi_examples
from deployments.http.access import OPEN_PATHS
from deployments.jobs.job_routes import JOB_OPERATIONS
from deployments.pages import docs_page
from deployments.predicting import schemas
from deployments.predicting.contract import Classifier, Observer
from deployments.protocols import protocol_operations, protocol_schemas
from deployments.protocols.protocol_server import ProtocolServer

OPERATIONS = (*JOB_OPERATIONS, *protocol_operations.OPERATIONS)


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
    routes = ProtocolServer(NoClassifier(), ServeConfig(), NoObserver()).http_app.routes
    served = {
        (route.path, method.lower()) for route in routes if isinstance(route, Route) for method in route.methods or () if method != "HEAD"
    }
    documented = {(path, method) for path, item in openapi.document(OPERATIONS)["paths"].items() for method in item}
    assert served - documented == {("/", "get"), ("/docs", "get"), ("/openapi.json", "get")}
    assert documented <= served


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = openapi.document(OPERATIONS)
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names == set(document["components"]["schemas"])
    assert json.loads(json.dumps(document)) == document


def test_the_page_shows_every_route_and_shape_and_asks_no_other_host() -> None:
    document = openapi.document(OPERATIONS)
    page = docs_page.render(document)
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page
    anchors = set(re.findall(r'href="#(\w+)"', page))
    assert anchors <= set(re.findall(r'id="(\w+)"', page))
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_the_page_escapes_what_a_document_says() -> None:
    document = openapi.document(OPERATIONS)
    hostile = "<script>alert(1)</script>"
    document["info"]["description"] = document["paths"]["/predict"]["post"]["summary"] = hostile
    document["components"]["schemas"]["Health"]["properties"]["status"] = {"const": hostile, "description": hostile}
    page = docs_page.render(document)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4


def examples_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each example, and the schema beside it."""
    if isinstance(value, dict):
        if "example" in value and "schema" in value:
            yield value["example"], value["schema"]
        for inner in value.values():
            yield from examples_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from examples_in(inner)


def test_every_answer_and_every_error_has_an_example_of_its_own_shape() -> None:
    document = openapi.document(OPERATIONS)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert {"200", "500"} <= set(operation["responses"]), f"{method} {path}"
            for status, response in operation["responses"].items():
                if list(response["content"]) == ["image/jpeg"]:
                    continue
                [body] = (body for media_type, body in response["content"].items() if media_type != "image/png")
                name = body["schema"]["$ref"].rpartition("/")[2]
                shape = getattr(schemas, name, None) or getattr(protocol_schemas, name)
                TypeAdapter(shape).validate_python(body["example"], strict=True, extra="forbid")
                assert status == "200" or body["example"].get("status", int(status)) == int(status)
    components = {"components": document["components"]}
    for example, schema in examples_in(document):
        jsonschema.validate(example, schema | components)


def test_the_server_address_is_relative() -> None:
    """A generated client, and a document below a prefix, must not name a server elsewhere."""
    assert [server["url"] for server in openapi.document(OPERATIONS)["servers"]] == ["."]


def test_what_is_behind_the_door_says_so_and_what_is_open_does_not() -> None:
    for path, item in openapi.document(OPERATIONS)["paths"].items():
        for operation in item.values():
            assert ("security" in operation) == ("401" in operation["responses"]) == (path not in OPEN_PATHS)


def test_the_picture_in_the_examples_is_one() -> None:
    assert preprocess(decode_base64(openapi_examples.PICTURE_BASE64), 16, "pad").shape == (16, 16, 3)

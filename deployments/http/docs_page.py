"""The page at `/docs`: the OpenAPI document as plain HTML, with no script and no request to anywhere."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

Json = dict[str, Any]

_TEMPLATE = Path(__file__).parents[1] / "web" / "docs.html"


def render(document: Json) -> str:
    """Renders an OpenAPI document made by `openapi.document`."""
    operations = [_operation(path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()]
    shapes = [_shape(name, shape) for name, shape in document["components"]["schemas"].items()]
    values = {"title": document["info"]["title"], "description": document["info"]["description"]}
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        {name: escape(value) for name, value in values.items()}, operations="\n".join(operations), shapes="\n".join(shapes)
    )


def _operation(path: str, method: str, operation: Json) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    rows = [("takes", f"<code>{escape(media_type)}</code> {_type(body['schema'])}") for media_type, body in content.items()]
    rows += [
        (f"?{parameter['name']}=", f"{_type(parameter['schema'])}: {escape(parameter['description'])}")
        for parameter in operation.get("parameters", [])
    ]
    for status, response in operation["responses"].items():
        shapes = " or ".join(_type(body["schema"]) for body in response["content"].values())
        rows.append((status, f"{shapes}: {escape(response['description'])}"))
    example = next((body["example"] for body in operation["responses"]["200"]["content"].values() if "example" in body), None)
    key = "<p>Needs a key where the server asks for keys.</p>" if "security" in operation else ""
    return (
        f'<section id="{escape(operation["operationId"])}"><h2><b>{escape(method.upper())}</b> <code>{escape(path)}</code></h2>'
        f"<p>{escape(operation['summary'])}</p>{key}<pre><code>{escape(operation['x-codeSamples'][0]['source'])}</code></pre>{_table(rows)}"
        f"<details><summary>An answer</summary><pre><code>{escape(json.dumps(example, indent=2))}</code></pre></details></section>"
    )


def _shape(name: str, shape: Json) -> str:
    rows = [(field, f"{_type(schema)} {escape(schema.get('description', ''))}") for field, schema in shape["properties"].items()]
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3><p>{escape(shape["description"])}</p>{_table(rows)}</section>'


def _table(rows: list[tuple[str, str]]) -> str:
    return "<table>" + "".join(f'<tr><th scope="row">{escape(name)}</th><td>{html}</td></tr>' for name, html in rows) + "</table>"


def _type(schema: Json) -> str:
    """A JSON schema in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if schema.get("format") == "binary":
        return "a picture"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"name → {_type(schema['additionalProperties'])}"
    if "properties" in schema:
        return "with " + ", ".join(f"<code>{escape(name)}</code>: {_type(field)}" for name, field in schema["properties"].items())
    return escape(schema["type"])

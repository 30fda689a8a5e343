"""The page at `/docs`: the OpenAPI document as plain HTML, without scripts and without requests to other hosts."""

from __future__ import annotations

import json
from typing import Any

from deployments.pages.page_templates import page_template

Json = dict[str, Any]


def render(document: Json) -> str:
    """Render an OpenAPI document made by `openapi.document`."""
    operations = [
        {"path": path, "method": method, "example": _example(operation), **operation}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document["components"]["schemas"]
    return page_template("docs.html").render(info=document["info"], operations=operations, schemas=schemas, to_json=json.dumps)


def _example(operation: Json) -> str:
    """The first example of a successful response, as JSON text."""
    bodies = operation["responses"]["200"]["content"].values()
    return json.dumps(next((body["example"] for body in bodies if "example" in body), None), indent=2)

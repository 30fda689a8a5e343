"""What the OpenAPI document says about a route."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deployments.http.responses import PROBLEM_FORM, ErrorForm
from deployments.predicting import schemas

Json = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One route: its request, its response and a curl command.

    Attributes:
        answer: shape of its JSON response; `None` if it returns a JPEG.
        picture_headers: headers of its PNG response; empty if it has none.
        headers: headers of its JSON response.
        method: of HTTP, in lower case; empty: post with a body, else get.
        example: its JSON response; default: that of the shape.
        body_shape: shape to which its body refers, if not `PictureInJson`.
        error_form: form of its errors.
    """

    path: str
    summary: str
    answer: Any
    curl: str
    body: Json = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    parameters: tuple[Json, ...] = ()
    picture_headers: Json = field(default_factory=dict)
    headers: Json = field(default_factory=dict)
    method: str = ""
    example: Any = None
    body_shape: Any = schemas.PictureInJson
    error_form: ErrorForm = PROBLEM_FORM

    @property
    def http_method(self) -> str:
        """Method of HTTP, in lower case."""
        return self.method or ("post" if self.body else "get")

    @property
    def example_path(self) -> str:
        """The path with the examples of its parameters."""
        return self.path.format(**{one["name"]: one.get("example", f"{{{one['name']}}}") for one in self.parameters if one["in"] == "path"})

    @property
    def operation_id(self) -> str:
        """Unique name, for generated clients."""
        words = self.path.replace("{", "").replace("}", "").strip("/").replace("/", "_")
        return f"{self.method}_{words}" if self.method else words

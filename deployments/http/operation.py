"""`Operation`: the description of a route for the OpenAPI document."""

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
        answer: type of the JSON response; `None` if the route returns a JPEG.
        picture_headers: headers of the PNG response; empty if there is none.
        headers: headers of the JSON response.
        method: HTTP method in lower case; empty means post with a body, else get.
        example: example of the JSON response; default: the example of `answer`.
        body_shape: type to which the schema of the body refers.
        error_form: form of the errors.
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
        """HTTP method in lower case."""
        return self.method or ("post" if self.body else "get")

    @property
    def example_path(self) -> str:
        """The path, with parameters replaced by their examples."""
        return self.path.format(**{one["name"]: one.get("example", f"{{{one['name']}}}") for one in self.parameters if one["in"] == "path"})

    @property
    def operation_id(self) -> str:
        """Unique name, for generated clients."""
        words = self.path.replace("{", "").replace("}", "").strip("/").replace("/", "_")
        return f"{self.method}_{words}" if self.method else words

"""What the OpenAPI document says about a route."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One route: its request, its response and a curl command.

    Attributes:
        answer: shape of its JSON response; `None` if it returns a JPEG.
        picture_headers: headers of its PNG response; empty if it has none.
        headers: headers of its JSON response.
        method: of HTTP, in lower case; empty: post with a body, else get.
    """

    path: str
    summary: str
    answer: type | None
    curl: str
    body: Json = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    parameters: tuple[Json, ...] = ()
    picture_headers: Json = field(default_factory=dict)
    headers: Json = field(default_factory=dict)
    method: str = ""

    @property
    def http_method(self) -> str:
        """Method of HTTP, in lower case."""
        return self.method or ("post" if self.body else "get")

    @property
    def operation_id(self) -> str:
        """Unique name, for generated clients."""
        words = self.path.replace("{", "").replace("}", "").strip("/").replace("/", "_")
        return f"{self.method}_{words}" if self.method else words

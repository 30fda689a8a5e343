"""The page at `/`: static files without a build step and without requests to other hosts."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES
from deployments.http.responses import revalidated
from deployments.pages.page_templates import WEB_FOLDER, page_template

_STATIC = WEB_FOLDER / "static"


class _ImmutableFiles(StaticFiles):
    """Files whose address changes with their content, so a browser may cache them forever."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def render(*, has_reviews: bool = False) -> str:
    """The HTML of the page. It links to its files by relative addresses, so it works behind any prefix.

    Args:
        has_reviews: whether people can label captured pictures, which needs API keys.
    """
    scripts = sorted(path.name for path in _STATIC.glob("*.js") if path.name != "page.js")
    values = {"static": _static_path(), "max_image_bytes": MAX_IMAGE_BYTES, "scripts": scripts, "has_reviews": has_reviews}
    return page_template("index.html").render(values)


def routes(html: str) -> list[BaseRoute]:
    """Routes of the page and its files."""

    async def answer_page(request: Request) -> Response:
        return revalidated(request, HTMLResponse(html))

    return [Route("/", answer_page), Mount(f"/{_static_path()}", _ImmutableFiles(directory=_STATIC))]


@cache
def _static_path() -> str:
    """Relative path of the files; it contains a digest of their content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _STATIC.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(_STATIC)}\0".encode() + path.read_bytes())
    return f"static/{digest.hexdigest()[:16]}"

"""The page at `/`: plain files, nothing built and nothing fetched from another host."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from cifar_ray.inference.preprocess import MAX_IMAGE_BYTES
from deployments.http.responses import revalidated

_WEB = Path(__file__).parents[1] / "web"
_STATIC = _WEB / "static"


class _Unchanging(StaticFiles):
    """Files whose address changes with their content: a browser asks for each once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def render() -> str:
    """The page's HTML. It links to its files by relative addresses, so it works behind any prefix."""
    scripts = sorted(path.name for path in _STATIC.glob("*.js") if path.name != "page.js")
    return Template((_WEB / "index.html").read_text(encoding="utf-8")).substitute(
        static=_address(),
        max_image_bytes=MAX_IMAGE_BYTES,
        # else the browser would hear of each script from the one before
        preload="\n".join(f'<link rel="modulepreload" href="{_address()}/{name}">' for name in scripts),
    )


def routes(html: str) -> list[BaseRoute]:
    """Where the page and its files are."""

    async def answer_page(request: Request) -> Response:
        return revalidated(request, HTMLResponse(html))

    return [Route("/", answer_page), Mount(f"/{_address()}", _Unchanging(directory=_STATIC))]


@cache
def _address() -> str:
    """Of the files: it names their content, so a browser may keep them for ever."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _STATIC.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(_STATIC)}\0".encode() + path.read_bytes())
    return f"static/{digest.hexdigest()[:16]}"

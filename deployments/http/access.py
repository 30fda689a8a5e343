"""Who is let in, and what every answer carries: plain ASGI around the routes, because each costs time on every request."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cifar_ray.config.api_keys import REVOKED, ApiKey, read_keys, sha256_of
from cifar_ray.errors import ConfigError

# What says nothing but that the server runs, and what a browser must load before anybody can type a key into it.
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready"})
OPEN_FOLDER = "/static/"

_LOOK_EVERY_S = 1.0
_CHALLENGE = 'Bearer realm="cifar_ray"'
_EVERYWHERE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
_PERMISSIONS = "camera=(self), microphone=(), geolocation=(), payment=(), usb=()"
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

Headers = Iterable[tuple[bytes, bytes]]
logger = logging.getLogger("ray.serve")


def route_path(scope: Scope) -> str:
    """The path as the routes see it, without the prefix under which the server is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class KeyRing:
    """The keys in a file; who changes the file need not start the server again.

    Args:
        path: of the file.
        share: of each key's requests a minute that are let in here; other ingress replicas let in the rest.
        clock: seconds that only grow.

    Raises:
        ConfigError: if the file cannot be read.
    """

    def __init__(self, path: Path, share: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._share = share
        self._clock = clock
        self._keys = read_keys(path)
        self._changed_at_ns = path.stat().st_mtime_ns
        self._looked_at = clock()
        self._problem = ""
        self._buckets: dict[str, tuple[float, float]] = {}

    def refusal(self, headers: Headers) -> HTTPException | None:
        """Why a request is not let in; `None` if it is."""
        sent = _key_in(headers)
        if sent is None:
            return HTTPException(
                401, "this server asks for a key: Authorization: Bearer KEY, or X-API-Key: KEY", {"WWW-Authenticate": _CHALLENGE}
            )
        key = self._find(sha256_of(sent))
        if key is None:
            return HTTPException(401, "this server does not know the key", {"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'})
        if key.limit == REVOKED:
            return HTTPException(403, f"the key of {key.name} is revoked; ask for a new one")
        wait_s = self._wait_s(key)
        if wait_s:
            headers_ = {"Retry-After": str(math.ceil(wait_s))}
            return HTTPException(429, f"{key.name} may send {key.limit} requests a minute; try again in {math.ceil(wait_s)} s", headers_)
        return None

    def _find(self, sha256: str) -> ApiKey | None:
        """Looks at every key, each in the same time whatever it is."""
        self._look()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, sha256):
                found = key
        return found

    def _wait_s(self, key: ApiKey) -> float:
        """A token bucket: it fills at the key's rate and holds what a minute brings, so that a pause can be made up for."""
        if key.requests_per_minute is None:
            return 0.0
        most, now = max(1.0, key.requests_per_minute * self._share), self._clock()
        tokens, at = self._buckets.get(key.name, (most, now))
        tokens = min(most, tokens + (now - at) * most / 60)
        if tokens >= 1:
            tokens -= 1
            wait_s = 0.0
        else:
            wait_s = (1 - tokens) * 60 / most
        self._buckets[key.name] = (tokens, now)
        return wait_s

    def _look(self) -> None:
        if self._clock() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = self._clock()
        problem = ""
        try:
            changed_at_ns = self._path.stat().st_mtime_ns
            if self._problem or changed_at_ns != self._changed_at_ns:
                self._keys, self._changed_at_ns = read_keys(self._path), changed_at_ns
        except (OSError, ConfigError) as error:
            problem = str(error)
            if problem != self._problem:
                logger.warning("the keys stay as they were: %s", problem)
        self._problem = problem


def _key_in(headers: Headers) -> bytes | None:
    in_own_header = None
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            in_own_header = value.strip()
    return in_own_header


class KeyGuard:
    """Lets in who has a key; `OPEN_PATHS`, and what lies in `OPEN_FOLDER`, need none.

    Args:
        app: what needs a key.
        keys: that open it.
        refuse: answers the others.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, refuse: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app = app
        self._keys = keys
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "http" and (path := route_path(scope)) not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
            refusal = self._keys.refusal(scope["headers"])
            if refusal:
                response = await self._refuse(Request(scope), refusal)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class SecurityHeaders:
    """Adds what tells a browser to trust an answer with nothing. HSTS is for the proxy that does TLS to send.

    Args:
        app: answers.
        pages: HTML by path. Each may run its own scripts and styles, from this server or written in it, and nothing else.
    """

    def __init__(self, app: ASGIApp, pages: Mapping[str, str]) -> None:
        self._app = app
        self._headers = _raw({"Content-Security-Policy": _NO_PAGE} | _EVERYWHERE)
        self._pages = {
            path: _raw({"Content-Security-Policy": page_policy(html), "Permissions-Policy": _PERMISSIONS} | _EVERYWHERE)
            for path, html in pages.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = self._pages.get(route_path(scope), self._headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def page_policy(html: str) -> str:
    """The content security policy of a page (CSP level 3): what is written in it is allowed by its hash."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f" 'sha256-{digest}'")
    return (
        f"default-src 'none'; script-src 'self'{''.join(hashes['script'])}; style-src 'self'{''.join(hashes['style'])}; "
        "img-src 'self' data: blob:; connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]

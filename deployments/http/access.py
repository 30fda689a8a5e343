"""API keys and security headers, as plain ASGI middleware: each costs time on every request."""

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
from cifar_ray.config.api_keys import Scope as KeyScope
from cifar_ray.errors import ConfigError
from deployments.http.rate_limits import RateLimiter

# These paths need no key: they only tell whether the server runs, or a browser loads them before its user can enter a key.
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready", "/v2/health/live", "/v2/health/ready", "/ping"})
OPEN_FOLDER = "/static/"

_CHECK_INTERVAL_S = 1.0
_KEY = "cifar_ray.key"  # in the request's scope
_CHALLENGE = 'Bearer realm="cifar_ray"'
_COMMON_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_DENY_ALL = "default-src 'none'; frame-ancestors 'none'"
_PERMISSIONS = "camera=(self), microphone=(), geolocation=(), payment=(), usb=()"
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

Headers = Iterable[tuple[bytes, bytes]]
logger = logging.getLogger("ray.serve")


def route_path(scope: Scope) -> str:
    """The path as the routes see it, without the prefix under which the server is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def holder(request: Request) -> str | None:
    """The holder of the request's API key; `None` if the server has no keys."""
    key: ApiKey | None = request.scope.get(_KEY)
    return key.name if key else None


def require_scope(request: Request, wanted: KeyScope) -> str:
    """Check that the request's API key has a scope that includes `wanted`.

    Returns:
        The holder of the key.

    Raises:
        HTTPException: 403 if not, or if the server has no keys.
    """
    key: ApiKey | None = request.scope.get(_KEY)
    if key is None:
        raise HTTPException(403, "this needs an API key, and the server has none. Start it with api_keys=FILE; see cifar-ray keys")
    if not key.may(wanted):
        raise HTTPException(403, f"the API key of {key.name} has the scope {key.scope}; this needs {wanted}")
    return key.name


class KeyRing:
    """The API keys in a file, which is read again when it changes while the server runs.

    Args:
        path: path of the file.
        limiter: holds the rate limits.
        clock: monotonic, in seconds.

    Raises:
        ConfigError: if the file cannot be read.
    """

    def __init__(self, path: Path, limiter: RateLimiter, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._limiter = limiter
        self._clock = clock
        self._keys = read_keys(path)
        self._changed_at_ns = path.stat().st_mtime_ns
        self._checked_at = clock()
        self._problem = ""

    async def admit(self, headers: Headers) -> ApiKey | HTTPException:
        """Return the key of a request; or the error to send if the request has no valid key or exceeds its rate limit."""
        sent = _key_in(headers)
        if sent is None:
            return HTTPException(
                401, "API key missing. Send the header Authorization: Bearer KEY, or X-API-Key: KEY", {"WWW-Authenticate": _CHALLENGE}
            )
        key = self._find(sha256_of(sent))
        if key is None:
            return HTTPException(401, "unknown API key", {"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'})
        if key.limit == REVOKED:
            return HTTPException(403, f"the API key of {key.name} is revoked. Request a new one from the operator of this server")
        wait_s = 0.0 if key.requests_per_minute is None else await self._limiter.wait_s(key.name, key.requests_per_minute)
        if wait_s:
            retry_after = str(math.ceil(wait_s))
            return HTTPException(
                429,
                f"rate limit of {key.name}: {key.limit} requests per minute. Try again in {retry_after} s",
                {"Retry-After": retry_after},
            )
        return key

    def _find(self, sha256: str) -> ApiKey | None:
        """Find a key by its hash; each comparison takes constant time."""
        self._reload_if_changed()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, sha256):
                found = key
        return found

    def _reload_if_changed(self) -> None:
        if self._clock() - self._checked_at < _CHECK_INTERVAL_S:
            return
        self._checked_at = self._clock()
        problem = ""
        try:
            changed_at_ns = self._path.stat().st_mtime_ns
            if self._problem or changed_at_ns != self._changed_at_ns:
                self._keys, self._changed_at_ns = read_keys(self._path), changed_at_ns
        except (OSError, ConfigError) as error:
            problem = str(error)
            if problem != self._problem:
                logger.warning("cannot read the API keys again, the previous ones stay valid: %s", problem)
        self._problem = problem


def _key_in(headers: Headers) -> bytes | None:
    in_own_header = None
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            in_own_header = value.strip()
    return in_own_header


def _is_open(method: str, path: str) -> bool:
    """Whether a request needs no key.

    A browser may request an open path with a slash at the end, which the router redirects. Below a prefix, it may request the empty path.
    """
    if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
        return True
    return method in ("GET", "HEAD") and (path.rstrip("/") or "/") in OPEN_PATHS


class KeyGuard:
    """Refuses requests without a valid API key, except to `OPEN_PATHS` and `OPEN_FOLDER`.

    Args:
        app: the protected app.
        keys: the valid keys.
        refuse: sends the error.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, refuse: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app = app
        self._keys = keys
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "http" and not _is_open(scope["method"], route_path(scope)):
            admitted = await self._keys.admit(scope["headers"])
            if isinstance(admitted, HTTPException):
                response = await self._refuse(Request(scope), admitted)
                await response(scope, receive, send)
                return
            scope[_KEY] = admitted
        await self._app(scope, receive, send)


class SecurityHeaders:
    """Adds restrictive security headers to every response. The proxy that terminates TLS sends HSTS.

    Args:
        app: the wrapped app.
        pages: HTML by path. Each may run only the scripts and styles that it contains or that this server serves.
    """

    def __init__(self, app: ASGIApp, pages: Mapping[str, str]) -> None:
        self._app = app
        self._headers = _raw({"Content-Security-Policy": _DENY_ALL} | _COMMON_HEADERS)
        self._pages = {
            path: _raw({"Content-Security-Policy": page_policy(html), "Permissions-Policy": _PERMISSIONS} | _COMMON_HEADERS)
            for path, html in pages.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
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
    """The content security policy of a page (CSP level 3); it allows inline scripts and styles by their hash."""
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

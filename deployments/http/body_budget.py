"""A limit on the bytes of all request bodies together, as plain ASGI middleware."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.predicting.pipeline import OverloadedError


class BodiesTooLargeError(OverloadedError):
    """The bodies of all requests together need too much memory; the rest of this one was not read."""


class BodyBudget:
    """Counts the bytes of each body from their arrival to the end of its request, and refuses bodies beyond a limit.

    A request whose declared length does not fit now is refused before its body is read. A declared length reserves no memory, because a
    client may declare bytes that it never sends.

    Args:
        app: the wrapped app, which handles `BodiesTooLargeError` from its `receive`.
        max_bytes: maximum size of all bodies together.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared_bytes = next((int(value[:19]) for name, value in scope["headers"] if name == b"content-length" and value.isdigit()), 0)
        own_bytes = 0
        is_refused = False

        async def counted() -> Message:
            nonlocal own_bytes, is_refused
            if not is_refused and self._held_bytes - own_bytes + declared_bytes <= self._max_bytes:
                message = await receive()
                more_bytes = len(message.get("body", b""))
                if self._held_bytes + more_bytes <= self._max_bytes:
                    self._held_bytes += more_bytes
                    own_bytes += more_bytes
                    return message
            if is_refused:  # the response discards what the client still sends
                return await receive()
            is_refused = True
            raise BodiesTooLargeError(
                f"the requests that are being read and answered need more than {self._max_bytes:,} bytes together; try again later"
            )

        try:
            await self._app(scope, counted, send)
        finally:
            self._held_bytes -= own_bytes

"""Asks a running server about pictures; needs neither torch nor Ray."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from cifar_ray.errors import ConfigError, ServerError

MAX_BATCH_IMAGES = 256
MAX_BATCH_BYTES = 64_000_000  # the server's own bound is 100 MB

_ATTEMPTS = 6
_OVERLOADED = 503
_MAX_WAIT_S = 10.0


class Client:
    """A connection to a server's API; not safe to share between threads.

    Args:
        url: `http://host:port`, with `?model=NAME` to ask another model than the server's own.
        timeout_s: longest wait for an answer.

    Raises:
        ConfigError: if `url` is not one of HTTP.
    """

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self._at: SplitResult = urlsplit(url)
        self._timeout_s = timeout_s
        if self._at.scheme not in ("http", "https") or not self._at.hostname:
            raise ConfigError(f"{url}: expected http://host:port of a running server")
        self._query = dict(part.partition("=")[::2] for part in self._at.query.split("&") if part)

    def predict_batch(self, pictures: Sequence[tuple[str, bytes]], top_k: int) -> dict[str, Any]:
        """Sends pictures to `POST /predict_batch`, again while the server says that it has too much to do.

        Args:
            pictures: file names and contents, at most `MAX_BATCH_IMAGES`.
            top_k: classes an answer.

        Returns:
            The answer as docs/api.md describes it: an entry a picture, in the order sent.

        Raises:
            ServerError: if the server cannot be reached or refuses.
        """
        boundary = uuid.uuid4().hex
        path = f"{self._at.path.rstrip('/')}/predict_batch?{urlencode(self._query | {'top_k': str(top_k)})}"
        return self._ask("POST", path, _multipart(pictures, boundary), {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def classes(self) -> dict[str, Any]:
        """What `GET /classes` says: which model answers, and the classes it tells apart.

        Raises:
            ServerError: if the server cannot be reached or has no model.
        """
        return self._ask("GET", f"{self._at.path.rstrip('/')}/classes?{urlencode(self._query)}", b"", {})

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        for attempt in range(_ATTEMPTS):
            status, reply, retry_after = self._send(method, path, body, headers)
            if status != _OVERLOADED or attempt + 1 == _ATTEMPTS:
                break
            time.sleep(min(_MAX_WAIT_S, float(retry_after) if retry_after.isdecimal() else 1.0))
        try:
            answer: dict[str, Any] = json.loads(reply)
        except ValueError:
            answer = {"detail": reply.decode(errors="replace")[:200]}
        if status != http.client.OK:
            raise ServerError(f"{self._where}: {status}: {answer.get('detail') or answer.get('title') or 'no reason given'}")
        return answer

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, str]:
        kind = http.client.HTTPSConnection if self._at.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._at.hostname or "", self._at.port, timeout=self._timeout_s)
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            reply = connection.getresponse()
            return reply.status, reply.read(), reply.headers.get("Retry-After", "")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"{self._where}: no answer ({' '.join(str(error).split()) or type(error).__name__}); is it running?"
            ) from None
        finally:
            connection.close()

    @property
    def _where(self) -> str:
        return f"server {self._at.scheme}://{self._at.netloc.rpartition('@')[2]}"


def _multipart(pictures: Sequence[tuple[str, bytes]], boundary: str) -> bytes:
    """A `multipart/form-data` body (RFC 7578)."""
    parts = []
    for name, data in pictures:
        quoted = name.replace("\\", "_").replace('"', "%22").replace("\r", "").replace("\n", "")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{quoted}"\r\n\r\n'
        parts += [head.encode(), data, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])

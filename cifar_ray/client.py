"""Asks a running server about pictures; needs neither torch nor Ray, nor anything beside the standard library.

client = Client("http://localhost:8000")
print(client.predict("frog.jpg").class_name)
"""

from __future__ import annotations

import http.client
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from cifar_ray.errors import ConfigError, ImageError, ImageTooLargeError, ServerError

KEY_VARIABLE = "CIFAR_RAY_API_KEY"
MAX_BATCH_IMAGES = 256
MAX_BATCH_BYTES = 64_000_000  # the server's own bound is 100 MB

Picture = bytes | str | os.PathLike[str]

_ATTEMPTS = 6
_AGAIN = (http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE)
_OF_THE_PICTURE = {http.client.UNPROCESSABLE_ENTITY: ImageError, http.client.REQUEST_ENTITY_TOO_LARGE: ImageTooLargeError}
_MAX_WAIT_S = 10.0
_NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Attributes:
        model: that answered.
        version: of it.
        class_id: of the most likely class.
        class_name: its name.
        confidence: its probability.
        probabilities: of every class, by name; they sum to 1.
        abstain: whether the model would rather not say: the picture is unlike those it learnt from.
        top_k: the most likely classes and their probabilities, most likely first.
        answer: all that the server said of the picture, as docs/api.md describes it.
    """

    model: str
    version: int
    class_id: int
    class_name: str
    confidence: float
    abstain: bool
    probabilities: dict[str, float]
    top_k: list[tuple[str, float]]
    answer: dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """What a model tells apart.

    Attributes:
        model: that answered.
        version: of it.
        names: in the order of `class_id`.
    """

    model: str
    version: int
    names: list[str]


class Client:
    """A server's API. Each call opens a connection of its own, so threads may share one client.

    A server that has too much to do, or has heard too much from this key, is asked again after as many seconds as it says, at most
    ten, and six times in all.

    Args:
        url: `http://host:port`, with `?model=NAME` to ask another model than the server's own.
        key: for a server that asks for one; default `$CIFAR_RAY_API_KEY`, else none.
        timeout_s: longest silence of the server.

    Raises:
        ConfigError: if `url` is not one of HTTP, or the key cannot be one.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        self._at: SplitResult = urlsplit(url)
        self._timeout_s = timeout_s
        key = os.environ.get(KEY_VARIABLE) if key is None else key
        if self._at.scheme not in ("http", "https") or not self._at.hostname:
            raise ConfigError(f"{url}: expected http://host:port of a running server")
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError("the key of the server: expected printable ASCII")  # it is never shown
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._query = dict(parse_qsl(self._at.query))

    def predict(self, picture: Picture, top_k: int | None = None) -> Prediction:
        """What one picture shows.

        Args:
            picture: an image file's path or content.
            top_k: most likely classes to list; the server's own number by default.

        Raises:
            ImageError: if the picture cannot be read, or the server cannot use it.
            ServerError: if the server cannot be reached or refuses.
        """
        answer = self._ask("POST", "/predict", _content(picture), "application/octet-stream", query={"top_k": top_k})
        return _prediction(answer, answer)

    def predict_batch(self, pictures: Sequence[Picture | tuple[str, bytes]], top_k: int | None = None) -> list[Prediction | ImageError]:
        """What each of several pictures shows, in the order given; a bad one has its error in its place.

        Args:
            pictures: paths, contents, or names with contents: at most `MAX_BATCH_IMAGES`, and `MAX_BATCH_BYTES` together.
            top_k: as in `predict`.

        Raises:
            ImageError: if one cannot be read here, or all together are too large.
            ServerError: if the server cannot be reached or refuses.
        """
        boundary = uuid.uuid4().hex
        sent = [picture if isinstance(picture, tuple) else ("picture", _content(picture)) for picture in pictures]
        body = _multipart(sent, boundary)
        answer = self._ask("POST", "/predict_batch", body, f"multipart/form-data; boundary={boundary}", query={"top_k": top_k})
        return [
            _OF_THE_PICTURE.get(entry["error"]["status"], ImageError)(entry["error"]["detail"])
            if "error" in entry
            else _prediction(answer, entry)
            for entry in answer["predictions"]
        ]

    def explain(self, picture: Picture, class_name: str | None = None) -> bytes:
        """Where a picture speaks for a class: a heatmap (Grad-CAM) laid over what the network saw, as PNG.

        Args:
            picture: as in `predict`.
            class_name: a name or an id; the most likely class by default.

        Raises:
            ImageError: if the picture cannot be read, or the server cannot use it.
            ServerError: if the server cannot be reached, knows no such class, or refuses.
        """
        return self._reply("POST", "/explain", _content(picture), "application/octet-stream", query={"class": class_name})

    def classes(self) -> Classes:
        """Which model answers, and the classes it tells apart.

        Raises:
            ServerError: if the server cannot be reached or has no model.
        """
        answer = self._ask("GET", "/classes")
        return Classes(answer["model"], answer["version"], answer["classes"])

    def models(self) -> dict[str, Any]:
        """What the model store holds, as docs/api.md describes it.

        Raises:
            ServerError: if the server cannot be reached or refuses.
        """
        return self._ask("GET", "/models")

    def ready(self) -> bool:
        """Whether a model answers now.

        Raises:
            ServerError: if the server cannot be reached.
        """
        try:
            self._ask("GET", "/ready", attempts=1)
        except ServerError as error:
            if error.status != http.client.SERVICE_UNAVAILABLE:
                raise
            return False
        return True

    def _ask(self, method: str, route: str, *request: Any, **options: Any) -> dict[str, Any]:
        reply = self._reply(method, route, *request, **options)
        try:
            answer: dict[str, Any] = json.loads(reply)
        except ValueError:
            raise ServerError(f"{self._where}: its answer to {route} is not JSON; is it a cifar_ray server?") from None
        return answer

    def _reply(
        self,
        method: str,
        route: str,
        body: bytes = b"",
        content_type: str | None = None,
        *,
        query: Mapping[str, object] = _NOTHING,
        attempts: int = _ATTEMPTS,
    ) -> bytes:
        asked = urlencode(self._query | {name: value for name, value in query.items() if value is not None})
        path = f"{self._at.path.rstrip('/')}{route}{'?' * bool(asked)}{asked}"
        headers = self._headers | ({"Content-Type": content_type} if content_type else {})
        for attempt in range(1, attempts + 1):
            status, reply, retry_after = self._send(method, path, body, headers)
            if status not in _AGAIN or attempt == attempts:
                break
            time.sleep(min(_MAX_WAIT_S, float(retry_after) if retry_after.isdecimal() else 1.0))
        if status == http.client.OK:
            return reply
        try:
            problem = json.loads(reply)
            reason = str(problem.get("detail") or problem.get("title") or "no reason given")
        except (ValueError, AttributeError):  # not a server of ours, or a proxy before it
            reason = " ".join(reply.decode(errors="replace").split())[:200]
        if status in _OF_THE_PICTURE:
            raise _OF_THE_PICTURE[status](reason)
        raise ServerError(f"{self._where}: {status}: {reason}", status)

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


def _content(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise ImageError(f"{picture}: {error.strerror}") from None


def _prediction(answer: dict[str, Any], entry: dict[str, Any]) -> Prediction:
    top_k = [(shown["class_name"], shown["probability"]) for shown in entry["top_k"]]
    return Prediction(
        answer["model"],
        answer["version"],
        entry["class_id"],
        entry["class_name"],
        entry["confidence"],
        entry.get("abstain", False),
        entry["probabilities"],
        top_k,
        entry,
    )


def _multipart(pictures: Sequence[tuple[str, bytes]], boundary: str) -> bytes:
    """A `multipart/form-data` body (RFC 7578)."""
    parts = []
    for name, data in pictures:
        quoted = name.replace("\\", "_").replace('"', "%22").replace("\r", "").replace("\n", "")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{quoted}"\r\n\r\n'
        parts += [head.encode(), data, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])

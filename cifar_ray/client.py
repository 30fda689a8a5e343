"""Client of a server, with the standard library only.

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
MAX_BATCH_BYTES = 64_000_000  # the server's limit is 100 MB

Picture = bytes | str | os.PathLike[str]

_ATTEMPTS = 6
_RETRIED = (http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE)
_IMAGE_ERRORS = {http.client.UNPROCESSABLE_ENTITY: ImageError, http.client.REQUEST_ENTITY_TOO_LARGE: ImageTooLargeError}
_MAX_WAIT_S = 10.0
_NO_QUERY: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Prediction:
    """Prediction for one picture.

    Attributes:
        model: name of the model.
        version: version of the model.
        class_id: class_id of the most likely class.
        class_name: name of the most likely class.
        confidence: probability of the most likely class.
        probabilities: probability of each class, by name; the sum is 1, unless the model gives any number of labels.
        labels: the labels of the picture, most likely first: those above their thresholds if the model gives any number of labels,
            else `class_name` alone.
        abstain: whether the model abstains: the picture is unlike the training images.
        top_k: the most likely classes and their probabilities, most likely first.
        answer: the server's JSON for the picture, as docs/api.md describes it.
    """

    model: str
    version: int
    class_id: int
    class_name: str
    confidence: float
    abstain: bool
    probabilities: dict[str, float]
    top_k: list[tuple[str, float]]
    labels: list[str]
    answer: dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        model: name of the model.
        version: version of the model.
        names: class names, in the order of `class_id`.
    """

    model: str
    version: int
    names: list[str]


class Client:
    """Client of a server's API. Each call opens its own connection, so threads may share a client.

    If the server is overloaded or the API key exceeds its rate limit, the client retries after the seconds that the server requests,
    at most ten, up to six attempts in total.

    Args:
        url: `http://host:port`, with `?model=NAME` for another model than the default one.
        key: API key, if the server requires one; default `$CIFAR_RAY_API_KEY`, else none.
        timeout_s: timeout for each response of the server.

    Raises:
        ConfigError: if `url` is not an HTTP URL, or the key is invalid.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        self._url: SplitResult = _split_address(url)
        self._timeout_s = timeout_s
        key = os.environ.get(KEY_VARIABLE) if key is None else key
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY_VARIABLE} or key: expected printable ASCII characters")  # without the key: it is secret
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._query = dict(parse_qsl(self._url.query))

    def predict(self, picture: Picture, top_k: int | None = None) -> Prediction:
        """Classify one picture.

        Args:
            picture: path or content of an image file.
            top_k: number of most likely classes to list; default: the server's setting.

        Raises:
            ImageError: if the picture cannot be read or decoded.
            ServerError: if the server cannot be reached or refuses the request.
        """
        answer = self._ask("POST", "/predict", _content(picture), "application/octet-stream", query={"top_k": top_k})
        return _prediction(answer, answer)

    def predict_batch(self, pictures: Sequence[Picture | tuple[str, bytes]], top_k: int | None = None) -> list[Prediction | ImageError]:
        """Classify several pictures, in the given order; a picture that cannot be decoded gets an error instead.

        Args:
            pictures: paths, contents, or names with contents: at most `MAX_BATCH_IMAGES` and `MAX_BATCH_BYTES` in total.
            top_k: as in `predict`.

        Raises:
            ImageError: if one cannot be read here, or all together are too large.
            ServerError: if the server cannot be reached or refuses the request.
        """
        boundary = uuid.uuid4().hex
        sent = [picture if isinstance(picture, tuple) else ("picture", _content(picture)) for picture in pictures]
        body = _multipart(sent, boundary)
        answer = self._ask("POST", "/predict_batch", body, f"multipart/form-data; boundary={boundary}", query={"top_k": top_k})
        return [
            _IMAGE_ERRORS.get(entry["error"]["status"], ImageError)(entry["error"]["detail"])
            if "error" in entry
            else _prediction(answer, entry)
            for entry in answer["predictions"]
        ]

    def explain(self, picture: Picture, class_name: str | None = None) -> bytes:
        """Explain a prediction: a Grad-CAM heatmap over the network's input, as PNG.

        Args:
            picture: as in `predict`.
            class_name: name or id of the class; default: the most likely class.

        Raises:
            ImageError: if the picture cannot be read or decoded.
            ServerError: if the server cannot be reached, the class does not exist, or the server refuses the request.
        """
        return self._reply("POST", "/explain", _content(picture), "application/octet-stream", query={"class": class_name})

    def classes(self) -> Classes:
        """The model that predicts, and its classes.

        Raises:
            ServerError: if the server cannot be reached or has no model.
        """
        answer = self._ask("GET", "/classes")
        return Classes(answer["model"], answer["version"], answer["classes"])

    def models(self) -> dict[str, Any]:
        """The models in the server's store, as docs/api.md describes them.

        Raises:
            ServerError: if the server cannot be reached or refuses the request.
        """
        return self._ask("GET", "/models")

    def ready(self) -> bool:
        """Whether the server can predict.

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
            raise ServerError(f"{self._where}: the response to {route} is not JSON; check that this is a cifar_ray server") from None
        return answer

    def _reply(
        self,
        method: str,
        route: str,
        body: bytes = b"",
        content_type: str | None = None,
        *,
        query: Mapping[str, object] = _NO_QUERY,
        attempts: int = _ATTEMPTS,
    ) -> bytes:
        query_string = urlencode(self._query | {name: value for name, value in query.items() if value is not None})
        path = f"{self._url.path.rstrip('/')}{route}{'?' * bool(query_string)}{query_string}"
        headers = self._headers | ({"Content-Type": content_type} if content_type else {})
        for attempt in range(1, attempts + 1):
            status, reply, retry_after = self._send(method, path, body, headers)
            if status not in _RETRIED or attempt == attempts:
                break
            time.sleep(min(_MAX_WAIT_S, float(retry_after) if retry_after.isdecimal() else 1.0))
        if status == http.client.OK:
            return reply
        try:
            problem = json.loads(reply)
            reason = str(problem.get("detail") or problem.get("title") or "no reason given")
        except (ValueError, AttributeError):  # not a cifar_ray server, or a proxy in front of it
            reason = " ".join(reply.decode(errors="replace").split())[:200]
        if status in _IMAGE_ERRORS:
            raise _IMAGE_ERRORS[status](reason)
        raise ServerError(f"{self._where}: {status}: {reason}", status)

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, str]:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=self._timeout_s)
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            reply = connection.getresponse()
            return reply.status, reply.read(), reply.headers.get("Retry-After", "")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"{self._where}: no response ({' '.join(str(error).split()) or type(error).__name__}); start it with: cifar-ray serve"
            ) from None
        finally:
            connection.close()

    @property
    def _where(self) -> str:
        return f"server {self._url.scheme}://{self._url.netloc.rpartition('@')[2]}{self._url.path.rstrip('/')}"


def _split_address(url: str) -> SplitResult:
    """Raises `ConfigError` for what is no address: another scheme, no host, a port that cannot be."""
    try:
        split = urlsplit(url)
        is_plain = split.path.isascii() and url.isprintable() and " " not in url  # http.client sends it as it is
        usable = is_plain and split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
        (split.hostname or "").encode("idna")  # as the socket does
    except ValueError:  # the port is no number up to 65535, brackets do not match, or a label of the host is empty or too long
        usable = False
    if not usable:
        raise ConfigError(f"{url if url.isprintable() else repr(url)}: expected the address of a server, as in http://localhost:8000")
    return split


def _content(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ImageError(f"{picture}: {getattr(error, 'strerror', None) or error}") from None


def _prediction(answer: dict[str, Any], entry: dict[str, Any]) -> Prediction:
    top_k = [(shown["class_name"], shown["probability"]) for shown in entry["top_k"]]
    labels = [label["class"] for label in entry["labels"] if label["above_threshold"]] if "labels" in entry else [entry["class_name"]]
    return Prediction(
        answer["model"],
        answer["version"],
        entry["class_id"],
        entry["class_name"],
        entry["confidence"],
        entry.get("abstain", False),
        entry["probabilities"],
        top_k,
        labels,
        entry,
    )


def _multipart(pictures: Sequence[tuple[str, bytes]], boundary: str) -> bytes:
    """A `multipart/form-data` body (RFC 7578); bytes of a file name that are not UTF-8 become `?`."""
    parts = []
    for name, data in pictures:
        quoted = name.replace("\\", "_").replace('"', "%22").replace("\r", "").replace("\n", "")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{quoted}"\r\n\r\n'
        parts += [head.encode(errors="replace"), data, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])

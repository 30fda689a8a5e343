"""Client of a server; it needs only the standard library.

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
from types import MappingProxyType
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlencode

from cifar_ray.client.messages import Classes, Picture, Prediction, content, multipart, prediction, split_address
from cifar_ray.errors import ConfigError, ImageError, ImageTooLargeError, ServerError

__all__ = ["KEY_VARIABLE", "MAX_BATCH_BYTES", "MAX_BATCH_IMAGES", "Classes", "Client", "ImageError", "Picture", "Prediction"]

KEY_VARIABLE = "CIFAR_RAY_API_KEY"
MAX_BATCH_IMAGES = 256
MAX_BATCH_BYTES = 64_000_000  # the server's limit is 100 MB

_ATTEMPTS = 6
_RETRIED = (http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE)
_IMAGE_ERRORS = {http.client.UNPROCESSABLE_ENTITY: ImageError, http.client.REQUEST_ENTITY_TOO_LARGE: ImageTooLargeError}
_MAX_WAIT_S = 10.0
_NO_QUERY: Mapping[str, object] = MappingProxyType({})


class Client:
    """Client of a server's API. Each call opens its own connection, so threads may share a client.

    If the server is overloaded or the API key exceeds its rate limit, the client retries after the seconds that the server requests,
    at most ten, up to six attempts in total.

    Args:
        url: `http://host:port`, with `?model=NAME` for another model than the default model.
        key: API key, if the server requires one; default `$CIFAR_RAY_API_KEY`, else none.
        timeout_s: timeout for each response of the server.

    Raises:
        ConfigError: if `url` is not an HTTP URL, or the key is invalid.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        self._url: SplitResult = split_address(url)
        self._timeout_s = timeout_s
        key = os.environ.get(KEY_VARIABLE) if key is None else key
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY_VARIABLE} or key: expected printable ASCII characters")  # the key is secret, so it is not shown
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
        answer = self._ask("POST", "/predict", content(picture), "application/octet-stream", query={"top_k": top_k})
        return prediction(answer, answer)

    def predict_batch(self, pictures: Sequence[Picture | tuple[str, bytes]], top_k: int | None = None) -> list[Prediction | ImageError]:
        """Classify several pictures. The results are in the given order; a picture that cannot be decoded has an error as its result.

        Args:
            pictures: paths, contents, or names with contents: at most `MAX_BATCH_IMAGES` and `MAX_BATCH_BYTES` in total.
            top_k: as in `predict`.

        Raises:
            ImageError: if a picture cannot be read on this machine, or all pictures together are too large.
            ServerError: if the server cannot be reached or refuses the request.
        """
        boundary = uuid.uuid4().hex
        sent = [picture if isinstance(picture, tuple) else ("picture", content(picture)) for picture in pictures]
        body = multipart(sent, boundary)
        answer = self._ask("POST", "/predict_batch", body, f"multipart/form-data; boundary={boundary}", query={"top_k": top_k})
        return [
            _IMAGE_ERRORS.get(entry["error"]["status"], ImageError)(entry["error"]["detail"])
            if "error" in entry
            else prediction(answer, entry)
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
        return self._reply("POST", "/explain", content(picture), "application/octet-stream", query={"class": class_name})

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

    def start_job(self, source: str, output: str, model: str | None = None, top_k: int | None = None) -> dict[str, Any]:
        """Start a job in which workers of the server predict many pictures. The API key needs the scope `jobs`.

        Args:
            source: folder, list or picture in the `inputs` of the server's storage, or an address that its operator allows.
            output: file name of the table, `.parquet` or `.csv`; it is written to the folder `predictions` of the storage.
            model: name or name@version; default: the server's default model.
            top_k: number of classes in a row; default: 5.

        Returns:
            The job, as docs/api.md describes it.

        Raises:
            ServerError: if the server cannot be reached or refuses the request.
        """
        values = {"source": source, "output": output, "model": model, "top_k": top_k}
        body = json.dumps({name: value for name, value in values.items() if value is not None}).encode()
        return self._ask("POST", "/jobs", body, "application/json")

    def job(self, job_id: str) -> dict[str, Any]:
        """A job and its progress; raises as `start_job`."""
        return self._ask("GET", f"/jobs/{quote(job_id, safe='')}")

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, the newest first; raises as `start_job`."""
        found: list[dict[str, Any]] = self._ask("GET", "/jobs")["jobs"]
        return found

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancel a job, and return it; raises as `start_job`."""
        return self._ask("DELETE", f"/jobs/{quote(job_id, safe='')}")

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
        hint = f"; pass key=, or set {KEY_VARIABLE}" if status == http.client.UNAUTHORIZED else ""
        raise ServerError(f"{self._where}: {status}: {reason}{hint}", status)

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

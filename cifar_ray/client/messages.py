"""Requests and responses of the client."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cifar_ray.errors import ConfigError, ImageError

Picture = bytes | str | os.PathLike[str]


@dataclass(frozen=True)
class Prediction:
    """Prediction for one picture.

    Attributes:
        model: name of the model.
        version: version of the model.
        class_id: number of the most likely class.
        class_name: name of the most likely class.
        confidence: probability of the most likely class.
        probabilities: probability of each class, by name; the sum is 1, unless the model gives any number of labels.
        labels: the labels of the picture, most likely first: those above their thresholds if the model gives any number of labels,
            else `class_name` alone.
        abstain: whether the model abstains, because the picture is unlike the pictures on which it was validated.
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


def split_address(url: str) -> SplitResult:
    """Parse the address of a server.

    Raises:
        ConfigError: for another scheme than http or https, a missing host, or an impossible port.
    """
    try:
        split = urlsplit(url)
        is_plain = split.path.isascii() and url.isprintable() and " " not in url  # http.client does not escape the path
        usable = is_plain and split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
        (split.hostname or "").encode("idna")  # as the socket encodes the host
    except ValueError:  # the port is not a number up to 65535, brackets do not match, or a label of the host is empty or too long
        usable = False
    if not usable:
        raise ConfigError(f"{url if url.isprintable() else repr(url)}: expected the address of a server, as in http://localhost:8000")
    return split


def content(picture: Picture) -> bytes:
    """The content of a picture file; raises `ImageError` if it cannot be read."""
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ImageError(f"{picture}: {getattr(error, 'strerror', None) or error}") from None


def prediction(answer: dict[str, Any], entry: dict[str, Any]) -> Prediction:
    """Create the prediction for one entry of a server's response; `answer` has model and version."""
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


def multipart(pictures: Sequence[tuple[str, bytes]], boundary: str) -> bytes:
    """A `multipart/form-data` body (RFC 7578) from names and contents; bytes of a name that are not UTF-8 become `?`."""
    parts = []
    for name, data in pictures:
        quoted = name.replace("\\", "_").replace('"', "%22").replace("\r", "").replace("\n", "")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{quoted}"\r\n\r\n'
        parts += [head.encode(errors="replace"), data, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])

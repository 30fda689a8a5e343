"""Captured pictures in Parquet files of some dozen pictures each; total size and age are limited."""

from __future__ import annotations

import io
import re
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any

from cifar_ray.errors import CifarRayError
from cifar_ray.storage import FileTree

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "captures"
KEY_PATTERN = r"[A-Za-z0-9._-]{1,100}#[0-9]{1,3}"

_NAME = re.compile(r"([0-9]{13})-[0-9a-f]{8}\.parquet")
_PICTURE = "picture"


class UnknownCaptureError(CifarRayError):
    """The picture was not captured, or is already deleted."""


@dataclass(frozen=True)
class Capture:
    """A picture that a server classified.

    Attributes:
        request_id: id of the request, as in the header `X-Request-Id` of the answer.
        index: place of the picture in the request, from 0.
        at: when it was answered, UTC.
        model: `name@version` of the model that answered.
        predicted: the most likely class; with several labels per picture, the labels above their thresholds, separated by commas.
        confidence: highest probability, 0–1.
        abstains: whether the model said "none of these".
        disagrees: whether another version on trial gave another answer.
        picture: the file as the client sent it; empty in a list without pictures.
    """

    request_id: str
    index: int
    at: datetime
    model: str
    predicted: str
    confidence: float
    abstains: bool
    disagrees: bool
    picture: bytes = b""

    @property
    def key(self) -> str:
        """Unique key of this picture: `request_id#index`."""
        return f"{self.request_id}#{self.index}"


class Captures:
    """The captured pictures at `<storage>/captures/`.

    Args:
        storage: path or URI.
        timeout_s: as for `FileTree`.

    Raises:
        StoreError: from every method, if the storage refuses the operation or cannot be reached.
    """

    def __init__(self, storage: str, timeout_s: float | None = None) -> None:
        self._files = FileTree(storage, FOLDER, timeout_s)
        self._known: dict[str, tuple[tuple[int, int], list[Capture]]] = {}
        self._lock = Lock()

    def write(self, captures: Sequence[Capture]) -> None:
        """Write pictures as a new file."""
        self._files.replace(f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(4)}.parquet", _encode(captures))

    def all(self) -> list[Capture]:
        """All captured pictures without their content, the oldest first; damaged files are left out."""
        by_key = {capture.key: capture for captures in self._contents().values() for capture in captures}
        return [*by_key.values()]  # a picture that was captured twice, because versions disagree on it, counts once

    def find(self, key: str, until: datetime | None = None) -> Capture | None:
        """One picture with its content; `None` if it was not captured or is already deleted.

        Args:
            key: key of the picture.
            until: leave out pictures that were written later.
        """
        for path, captures in reversed(self._contents().items()):
            if until is not None and _written_ms(path) > until.timestamp() * 1000:
                continue
            if any(capture.key == key for capture in captures):
                found = _decode(self._files.read(path), with_pictures=True)
                return next((capture for capture in found if capture.key == key), None)
        return None

    def delete(self, request_ids: Collection[str]) -> int:
        """Delete all pictures of some requests, from every file.

        Returns:
            Number of deleted pictures.
        """
        deleted = 0
        for path, held in self._contents().items():
            gone = sum(capture.request_id in request_ids for capture in held)
            if gone and gone == len(held):
                self._files.delete(path)
            elif gone:
                self._files.update(path, lambda data: _encode([one for one in _decode(data, True) if one.request_id not in request_ids]))
            deleted += gone
        return deleted

    def expire(self, max_bytes: int, max_age_s: float) -> int:
        """Delete files older than `max_age_s`, and then the oldest ones until the rest has at most `max_bytes`.

        Returns:
            Number of deleted files.
        """
        states, now_ms = self._shards(), time.time_ns() // 1_000_000
        size = sum(size for size, _ in states.values())
        deleted = 0
        for path, (own_size, _) in states.items():
            if size <= max_bytes and now_ms - _written_ms(path) <= max_age_s * 1000:
                break
            self._files.delete(path)
            size -= own_size
            deleted += 1
        return deleted

    def _shards(self) -> dict[str, tuple[int, int]]:
        return {path: state for path, state in self._files.files(allow_not_found=True).items() if _NAME.fullmatch(path)}

    def _contents(self) -> dict[str, list[Capture]]:
        """Captures in each file, without pictures, the oldest first. A file is read once, and again only after a change."""
        with self._lock:
            states, known = self._shards(), self._known
            self._known = {
                path: known[path]
                if path in known and known[path][0] == state
                else (state, _decode(self._files.read(path), with_pictures=False))
                for path, state in states.items()
            }
            return {path: captures for path, (_, captures) in self._known.items()}


def doubt_sort_key(capture: Capture) -> tuple[bool, bool, float]:
    """Sort key, most doubtful captures first: those on which versions disagree, then "none of these", then by rising confidence."""
    return not capture.disagrees, not capture.abstains, capture.confidence


def _written_ms(path: str) -> int:
    return int(path.partition("-")[0])


def _encode(captures: Sequence[Capture]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [asdict(capture) for capture in captures]
    table = pa.Table.from_pylist(fields, _schema())
    buffer = io.BytesIO()
    # pictures are compressed already
    pq.write_table(table, buffer, compression={name: "NONE" if name == _PICTURE else "ZSTD" for name in table.column_names})
    return buffer.getvalue()


def _decode(data: bytes | None, with_pictures: bool) -> list[Capture]:
    """Captures in a file; empty if the file is damaged or was just deleted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if data is None:
        return []
    names = [field.name for field in _schema() if with_pictures or field.name != _PICTURE]
    try:
        rows = pq.read_table(io.BytesIO(data), columns=names).to_pylist()
    except (pa.ArrowException, KeyError):
        return []
    return list(_captures(rows))


def _captures(rows: list[dict[str, Any]]) -> Iterator[Capture]:
    for row in rows:
        capture = Capture(**row)
        yield replace(capture, at=capture.at.replace(tzinfo=UTC) if capture.at.tzinfo is None else capture.at)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("request_id", pa.string()),
            ("index", pa.int32()),
            ("at", pa.timestamp("ms", tz="UTC")),
            ("model", pa.string()),
            ("predicted", pa.string()),
            ("confidence", pa.float32()),
            ("abstains", pa.bool_()),
            ("disagrees", pa.bool_()),
            (_PICTURE, pa.binary()),
        ]
    )

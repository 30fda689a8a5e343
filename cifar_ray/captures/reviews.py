"""Labels that people gave to captured pictures: one file for each decision, so that no reviewer overwrites another."""

from __future__ import annotations

import base64
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Lock
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from cifar_ray.captures.capture_files import Capture
from cifar_ray.storage import FileTree

FOLDER = "reviews"
Source = Literal["review", "feedback"]

_READERS = 16


class Review(BaseModel):
    """A decision about one picture.

    Attributes:
        key: key of the picture, as `Capture.key`.
        at: time of the decision.
        by: holder of the reviewer's API key.
        label: the correct class, or several classes separated by commas; empty for none of the classes, or if undone.
        undone: whether this decision undoes the earlier ones.
        source: `review` by a reviewer, or `feedback` by a client.
        model: `name@version` of the model that had answered; empty if the picture was not captured.
        predicted: answer of that model.
        picture: the file in base64, because captured pictures expire; empty if the picture was not captured.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    at: datetime
    by: str
    label: str
    undone: bool = False
    source: Source = "review"
    model: str = ""
    predicted: str = ""
    picture: str = ""

    @property
    def content(self) -> bytes:
        """The picture file."""
        return base64.b64decode(self.picture)

    def with_picture(self, capture: Capture) -> Self:
        """A copy with the picture, model and prediction of a capture."""
        content = base64.b64encode(capture.picture).decode()
        return self.model_copy(update={"picture": content, "model": capture.model, "predicted": capture.predicted})


class Reviews:
    """The decisions at `<storage>/reviews/`. The last decision about a picture counts; a reviewer's beats a client's.

    Args:
        storage: path or URI.
        timeout_s: as for `FileTree`.

    Raises:
        StoreError: from every method, if the storage refuses the operation or cannot be reached.
    """

    def __init__(self, storage: str, timeout_s: float | None = None) -> None:
        self._files = FileTree(storage, FOLDER, timeout_s)
        self._known: dict[str, Review | None] = {}  # without pictures
        self._lock = Lock()

    def add(self, key: str, label: str, by: str, capture: Capture | None, *, source: Source = "review", undone: bool = False) -> Review:
        """Write a decision.

        Args:
            key: key of the picture.
            label: the correct class or classes.
            by: holder of the API key.
            capture: the captured picture; `None` if it was not captured.
            source: `review` or `feedback`.
            undone: undo the earlier decisions about the picture.
        """
        review = Review(key=key, at=datetime.now(UTC), by=by, label=label, undone=undone, source=source)
        if capture and not undone:
            review = review.with_picture(capture)
        name = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(4)}.json"
        self._files.replace(name, review.model_dump_json().encode())
        return review

    def all(self) -> list[Review]:
        """Every decision, the oldest first, without pictures; damaged files are left out."""
        return [review for review in self._contents().values() if review]

    def current(self, *, with_pictures: bool = False, until: datetime | None = None) -> dict[str, Review]:
        """The decision that counts for each picture, by its key, without those that were undone.

        Args:
            with_pictures: also read the pictures.
            until: leave out later decisions.
        """
        return {key: self._read(name) or review if with_pictures else review for key, (name, review) in self._current(until).items()}

    def _current(self, until: datetime | None) -> dict[str, tuple[str, Review]]:
        """File and content of the decision that counts for each picture."""
        found: dict[str, tuple[str, Review]] = {}
        for name, review in self._contents().items():
            if review is None or (until is not None and review.at > until):
                continue
            _, before = found.get(review.key, ("", None))
            if before is None or not (before.source == "review" and review.source == "feedback"):
                found[review.key] = (name, review)
        return {key: (name, review) for key, (name, review) in found.items() if not review.undone}

    def delete(self, request_id: str) -> int:
        """Delete all decisions about the pictures of a request, with the pictures in them; returns the number of decisions."""
        names = [name for name, review in self._contents().items() if review and review.key.rpartition("#")[0] == request_id]
        for name in names:
            self._files.delete(name)
        return len(names)

    def _contents(self) -> dict[str, Review | None]:
        """Each decision by file name, without its picture; `None` for a damaged file. A file is read only once."""
        with self._lock, ThreadPoolExecutor(_READERS) as pool:
            names = [name for name in self._files.files(allow_not_found=True) if name.endswith(".json")]
            new = [name for name in names if name not in self._known]
            found = self._known | dict(zip(new, pool.map(self._without_picture, new), strict=True))
            self._known = {name: found[name] for name in names}
            return self._known

    def _without_picture(self, name: str) -> Review | None:
        review = self._read(name)
        return review.model_copy(update={"picture": ""}) if review else None

    def _read(self, name: str) -> Review | None:
        data = self._files.read(name)
        try:
            return None if data is None else Review.model_validate_json(data)
        except ValidationError:
            return None

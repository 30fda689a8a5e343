"""The gallery of a model: its confusion matrix and thumbnails of its mistakes, as an attachment of the bundle."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic_core import from_json, to_json

GALLERY_FILE = "gallery.json"

_MAX_PER_CELL = 12
MAX_PICTURES = 1000
_MAX_CELLS = 10_000  # off-diagonal cells of the matrix: a thousand classes have a million
_MAX_BYTES = 1_400_000  # all pictures, base64-encoded
_SIDE_PX, _SIDE_OF_MANY_PX, _MANY = 224, 96, 100  # more than 100 thumbnails are small, so that more cells have one
_QUALITY = 85

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """Predictions of a model for the images of a split.

    Attributes:
        labels: int64 `[N]`, the true classes.
        predicted: int64 `[N]`, the most probable classes.
        confidence: float `[N]`, their probabilities.
    """

    labels: Integers
    predicted: Integers
    confidence: npt.NDArray[np.floating[Any]]

    @classmethod
    def of(cls, logits: npt.NDArray[np.float32], labels: Integers, temperature: float = 1.0) -> SplitPredictions:
        """Create from logits `[N, C]`; they are divided by the temperature before softmax."""
        shifted = (logits - logits.max(axis=1, keepdims=True)) / temperature
        return cls(labels, logits.argmax(axis=1), 1 / np.exp(shifted).sum(axis=1))


def encode_gallery(
    judged: SplitPredictions,
    images: npt.NDArray[np.uint8],
    class_names: tuple[str, ...],
    name_of: Callable[[int], str],
    split: str,
    limit: int = MAX_PICTURES,
) -> bytes:
    """Create the attachment: at most 12 pictures per pair of classes and `limit` in total, the most confident mistakes first.

    Args:
        judged: predictions for the whole split.
        images: uint8 `[N, S, S, 3]`; only the images in the gallery are read.
        class_names: in label order.
        name_of: name of an image for the user.
        split: name of the split, for example `test`.
        limit: maximum number of pictures; with 0, the gallery is the confusion matrix alone.

    Returns:
        JSON as `deployments.predicting.schemas.Gallery` describes it, less than 2 MB.
    """
    wrong = np.flatnonzero(judged.predicted != judged.labels)
    cells = Counter(zip(judged.labels[wrong].tolist(), judged.predicted[wrong].tolist(), strict=True))
    classes = len(class_names)
    gallery = {
        "split": split,
        "class_names": class_names,
        "images": np.bincount(judged.labels, minlength=classes).tolist(),
        "correct": np.bincount(judged.labels[judged.predicted == judged.labels], minlength=classes).tolist(),
        "confusions": [{"true": true, "predicted": predicted, "count": n} for (true, predicted), n in cells.most_common(_MAX_CELLS)],
        "mistakes": _mistakes(judged, wrong, images, name_of, limit),
    }
    return to_json(gallery)


def _mistakes(
    judged: SplitPredictions, wrong: Integers, images: npt.NDArray[np.uint8], name_of: Callable[[int], str], limit: int
) -> list[dict[str, object]]:
    """Choose the mistakes: first the most confident one of every cell, then the second of every cell, so that many cells have one."""
    in_cell: Counter[tuple[int, int]] = Counter()
    ranked = []
    for row in wrong[np.argsort(-judged.confidence[wrong], kind="stable")].tolist():
        cell = int(judged.labels[row]), int(judged.predicted[row])
        if in_cell[cell] < _MAX_PER_CELL:
            ranked.append((in_cell[cell], row))
            in_cell[cell] += 1
    shown: list[dict[str, object]] = []
    bytes_left = _MAX_BYTES
    places = sorted(ranked, key=lambda place: place[0])[:limit]
    side_px = _SIDE_PX if len(places) <= _MANY else _SIDE_OF_MANY_PX
    for _, row in places:
        picture = thumbnail(images[row], side_px)
        bytes_left -= len(picture)
        if bytes_left < 0:
            break
        confidence = round(float(judged.confidence[row]), 4)
        true, predicted = int(judged.labels[row]), int(judged.predicted[row])
        shown.append({"true": true, "predicted": predicted, "confidence": confidence, "name": name_of(row)[-200:], "picture": picture})
    return shown


def thumbnail(image: npt.NDArray[np.uint8], side_px: int) -> str:
    """Thumbnail of an image, uint8 `[S, S, 3]`, as a data URI; its sides have at most `side_px`."""
    picture = Image.fromarray(image)
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def count_pictures(gallery: bytes) -> int:
    """Number of pictures in an attachment from `encode_gallery`."""
    return len(from_json(gallery)["mistakes"])

"""Add pictures of requests, labelled by people, to the training images of a data set."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

import numpy as np

from cifar_ray.captures.capture_files import Captures
from cifar_ray.captures.review_table import is_held_out, labelled
from cifar_ray.captures.reviews import Review, Reviews
from cifar_ray.config import ResizePolicy, TrainConfig
from cifar_ray.data.dataset import DatasetSplits, ImageDataset, join
from cifar_ray.data.decode import decode_square
from cifar_ray.errors import ImageError

_logger = logging.getLogger(__name__)


def with_reviews(splits: DatasetSplits, config: TrainConfig) -> DatasetSplits:
    """Add four fifths of the reviewed pictures to the training images, with `config.review_weight`; other splits stay unchanged.

    Pictures of classes that the data set does not have are left out, with one log message.

    Raises:
        StoreError: if the storage cannot be read.
    """
    train = splits.train
    until = datetime.fromisoformat(config.reviews_until) if config.reviews_until else None
    more = reviewed_images(config.storage, train, config.square_policy, held_out=False, until=until)
    if not len(more):
        when = f"had a label of this data set until {until.isoformat(timespec='seconds')}" if until else "has a label of this data set yet"
        _logger.warning("--with-reviews: no picture in %s %s; see cifar-ray review captures", config.storage, when)
        return splits
    _logger.info("training on %s reviewed pictures beside %s others", f"{len(more):,}", f"{len(train):,}")
    if train.weights is not None or config.review_weight != 1:
        more = replace(more, weights=np.full(len(more), config.review_weight, np.float32))
    return DatasetSplits(splits.name, join([train, more]), splits.val, splits.test, splits.class_descriptions, splits.fingerprint)


def reviewed_images(
    storage: str, like: ImageDataset, policy: ResizePolicy, *, held_out: bool, until: datetime | None = None
) -> ImageDataset:
    """Decode reviewed pictures.

    Args:
        storage: path or URI of the storage that holds them.
        like: a data set with the same classes, task and image size.
        policy: how pictures of other shapes become square.
        held_out: `True` for the fifth that is never trained on, `False` for the other four fifths.
        until: leave out later decisions.

    Returns:
        The pictures, possibly none. Damaged pictures and pictures of other classes are left out, with one log message for each of the two.

    Raises:
        StoreError: if the storage cannot be read.
    """
    images, labels, files, unknown, damaged = [], [], [], set(), 0
    for review in labelled(Captures(storage), Reviews(storage), several_labels=like.is_multi_label, until=until):
        if is_held_out(review) != held_out:
            continue
        label = _label(review, like)
        if label is None:
            unknown.add(review.label)
            continue
        try:
            images.append(decode_square(review.content, like.image_size_px, policy))
        except ImageError:
            damaged += 1
            continue
        labels.append(label)
        files.append(review.key.encode())
    if unknown:
        _logger.warning("reviewed pictures of classes that the data set does not have are left out: %s", ", ".join(sorted(unknown)))
    if damaged:
        _logger.warning("%d reviewed pictures are damaged and left out", damaged)
    size_px = like.image_size_px
    return ImageDataset(
        np.stack(images) if images else np.empty((0, size_px, size_px, 3), np.uint8),
        np.stack(labels) if labels else like.labels[:0],
        like.class_names,
        files=np.array(files, np.bytes_) if files else np.empty(0, "S1"),
    )


def _label(review: Review, like: ImageDataset) -> np.ndarray | None:
    """Label in the form of the data set: int64 `[]`, or uint8 `[C]` with several labels per image; `None` for an unknown class."""
    names = _names(review.label, like.class_names) if like.is_multi_label else [review.label]
    if not set(names) <= set(like.class_names):
        return None
    places = [like.class_names.index(name) for name in names]
    if not like.is_multi_label:
        return np.asarray(places[0], np.int64)
    row = np.zeros(like.num_classes, np.uint8)
    row[places] = 1
    return row


def _names(text: str, class_names: tuple[str, ...]) -> list[str]:
    """Split names at commas; a class name may itself contain commas. Text that starts with no class name becomes one name."""
    found, rest = [], text.strip()
    while rest:
        known = (name for name in class_names if rest == name or rest.startswith(f"{name},"))
        name = max(known, key=len, default=rest)
        found.append(name)
        rest = rest[len(name) + 1 :].lstrip()
    return found

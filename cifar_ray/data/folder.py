"""Load a folder of pictures with one subfolder per class."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_ray.cluster.process import usable_cores
from cifar_ray.config import ResizePolicy, TaskChoice
from cifar_ray.data import dataset_cache as cache
from cifar_ray.data.bursts import MAX_PICTURES, find_bursts, sketch
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.decode import DECODER_VERSION, decode_square
from cifar_ray.data.listing.layouts import Listing
from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.data.reading.picture_source import Pictures
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import DataError, ImageError
from cifar_ray.metrics.accuracy import Labels
from cifar_ray.metrics.label_sets import count_labels, label_set_ids

# If a larger share of a class is damaged, the cause is the copy, the disk or the labels, not single pictures.
LARGEST_BROKEN_SHARE = 0.5

_NAMED = 3  # damaged pictures named in messages
_MAX_THREADS = 16  # small pictures spend half their time in Python: more threads would only wait for the GIL
_logger = logging.getLogger(__name__)


def load_folder(
    place: Path | str,
    size_px: int,
    policy: ResizePolicy,
    progress: StartTask = no_progress,
    columns: str | None = None,
    task: TaskChoice = "auto",
) -> DatasetSplits:
    """Load the pictures of a folder or table, in any layout that `list_pictures` knows; decode them on first use.

    Pictures may be at any depth below their class folder. Hidden files and other file types are ignored. Damaged pictures are left out,
    and one log message counts them.

    Raises:
        DataError: from `list_pictures`, or if more than half of the pictures of a class are damaged.
    """
    listing = list_pictures(place, columns, task)
    entry = f"{listing.name}-{size_px}px-{policy}-v{DECODER_VERSION}-{listing.fingerprint()[:16]}"
    splits = cache.load_or_build(entry, lambda allocate: _decode(listing, size_px, policy, allocate, progress))
    return replace(splits, class_descriptions=listing.class_descriptions)  # not from the cache: a changed text needs no new decoding


def _decode(listing: Listing, size_px: int, policy: ResizePolicy, allocate: cache.Allocate, progress: StartTask) -> DatasetSplits:
    """Decode all splits in threads; Pillow releases the GIL."""
    total = len(listing)
    threads = decoding_threads(listing.pictures)
    _logger.info("decoding %s pictures of %s in %d threads", f"{total:,}", listing.root, threads)
    start_s = time.perf_counter()
    damaged = Damaged(listing)
    parts: dict[str, ImageDataset] = {}
    on_decoded = progress("decoding", total)
    with ThreadPool(threads) as pool:
        for split, part in listing.parts.items():
            images = allocate(split, len(part), size_px)
            intact = np.ones(len(part), np.bool_)
            for row, error in enumerate(pool.imap(decoder(part.pictures, images, size_px, policy), range(len(part)), chunksize=16)):
                on_decoded(1)
                if error is not None:
                    intact[row] = False
                    damaged.add(part.labels[row], error)
            names = part.pictures.names[intact]
            weights = None if part.weights is None else part.weights[intact]
            parts[split] = ImageDataset(_compact(images, intact), part.labels[intact], listing.class_names, names, weights=weights)
    damaged.report()
    check_present(listing, parts)
    if len(listing.parts["train"]) <= MAX_PICTURES:
        train = parts["train"]
        parts["train"] = replace(train, bursts=find_bursts(*sketch(train.images), label_set_ids(train.labels)))
    _logger.info("decoded %s pictures in %.1f s", f"{total - len(damaged.errors):,}", time.perf_counter() - start_s)
    return DatasetSplits(listing.name, parts["train"], parts.get("val"), parts.get("test"))


def decoding_threads(pictures: Pictures) -> int:
    """Number of threads that decode pictures on this host: one per CPU core, at most 16; always 16 if they wait for an object store."""
    return _MAX_THREADS if pictures.is_remote else min(usable_cores(), _MAX_THREADS)


def decoder(pictures: Pictures, images: npt.NDArray[np.uint8], size_px: int, policy: ResizePolicy) -> Callable[[int], str | None]:
    """A function that decodes picture `row` into `images[row]`; it returns the error message, or `None`."""

    def decode(row: int) -> str | None:
        try:
            images[row] = decode_square(pictures.source(row), size_px, policy, name=pictures.where(row))
        except ImageError as error:
            return str(error)
        return None

    return decode


def _compact(images: npt.NDArray[np.uint8], intact: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Move the intact rows to the front, in place, and return them."""
    rows = np.flatnonzero(intact)
    if len(rows) < len(images):
        for start in range(0, len(rows), 1024):
            images[start : start + 1024][: len(rows) - start] = images[rows[start : start + 1024]]
    return images[: len(rows)]


class Damaged:
    """The pictures of a listing that cannot be decoded.

    Attributes:
        errors: one message per damaged picture, with its path.
    """

    def __init__(self, listing: Listing) -> None:
        self.errors: list[str] = []
        self._listing = listing
        self._pictures = count_labels(listing.labels, len(listing.class_names))
        self._errors_of: dict[int, list[str]] = defaultdict(list)

    def add(self, labels: Labels, error: str) -> None:
        """Count one more damaged picture of its class, or of each class that it has.

        Args:
            labels: label of the picture: int64 `[]`, or uint8 `[C]` with several labels per picture.
            error: message with the path of the picture.

        Raises:
            DataError: if more than half of the pictures of a class are damaged; the message names the first three.
        """
        self.errors.append(error)
        for label in [int(labels)] if labels.ndim == 0 else np.flatnonzero(labels).tolist():
            errors = self._errors_of[label]
            errors.append(error)
            # No check of the whole folder is needed: if more than half of it is damaged, so is more than half of some class.
            if len(errors) > LARGEST_BROKEN_SHARE * self._pictures[label]:
                raise DataError(
                    f"{self._listing.root}: more than half of the {self._pictures[label]:,} pictures of class "
                    f"{self._listing.class_names[label]!r} are damaged; repair or remove them. The first are: {'; '.join(errors[:_NAMED])}"
                )

    def report(self) -> None:
        """Log the number of damaged pictures and the first three; log the others at debug level."""
        if self.errors:
            more = f"; and {len(self.errors) - _NAMED:,} more" if len(self.errors) > _NAMED else ""
            counts = f"{len(self.errors):,} of {len(self._listing):,} pictures"
            _logger.warning("%s: left out %s as damaged: %s%s", self._listing.root, counts, "; ".join(self.errors[:_NAMED]), more)
        for error in self.errors[_NAMED:]:
            _logger.debug("left out %s", error)


def check_present(listing: Listing, parts: dict[str, ImageDataset]) -> None:
    """Check that each split, and each class of `train`, has an intact picture.

    Raises:
        DataError: if a split or class has none.
    """
    for split, part in parts.items():
        if not len(part):
            raise DataError(f"{listing.root}: all pictures of split {split} are damaged; replace them")
    for label, count in enumerate(parts["train"].class_counts()):
        if count == 0:
            raise DataError(f"{listing.root}: all pictures of class {listing.class_names[label]!r} are damaged; replace them")

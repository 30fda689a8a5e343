"""A folder of pictures, one sub-folder a class, as a data set."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_ray.config import ResizePolicy
from cifar_ray.data import cache
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.decode import DECODER_VERSION, SUFFIXES, decode_image, fit
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import DataError, ImageError

LARGEST_BROKEN_SHARE = 0.01

_LAYOUT = b"with file names\0"  # entries of the cache without them are built again
_MOST_THREADS = 16  # small pictures spend half their time in Python: more threads would only contend for its lock
_SPLITS = ("train", "val", "test")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder, not yet opened.

    Attributes:
        root: the folder.
        class_names: names of the class folders of `train`, sorted.
        files: per split, `(path, label)` in the order of class and path; only `train` where the folder has one level.
    """

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]

    @property
    def name(self) -> str:
        """The folder's name, made into a valid name for a model."""
        plain = unicodedata.normalize("NFKD", self.root.resolve().name).encode("ascii", "ignore").decode()
        return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:100] or "folder"

    def fingerprint(self) -> str:
        """sha256 over path, size and time of change of each file."""
        digest = hashlib.sha256(_LAYOUT + os.fsencode(self.root))
        for split, files in self.files.items():
            for path, label in files:
                try:
                    state = path.stat()
                    about = f"{split}\0{label}\0{state.st_size}\0{state.st_mtime_ns}\0"
                except OSError:  # a dangling link: decoding will name it
                    about = f"{split}\0{label}\0missing\0"
                digest.update(about.encode() + os.fsencode(path) + b"\0")
        return digest.hexdigest()


def load_folder(root: Path, size_px: int, policy: ResizePolicy, progress: StartTask = no_progress) -> DatasetSplits:
    """Loads `root/train/<class>/…` with optional `val/` and `test/`, or `root/<class>/…`, decoding it the first time.

    Pictures may lie at any depth below their class folder. Hidden files and other kinds of files are not looked at.
    A broken picture is logged and left out.

    Raises:
        DataError: if the folder is missing or not laid out so, a class is empty, only one or unknown, or more than 1 % is broken.
    """
    listing = list_folder(root)
    entry = f"{listing.name}-{size_px}px-{policy}-v{DECODER_VERSION}-{listing.fingerprint()[:16]}"
    return cache.load_or_build(entry, lambda allocate: _decode(listing, size_px, policy, allocate, progress))


def list_folder(root: Path) -> Listing:
    """Finds classes and pictures, and refuses what cannot be trained on.

    Raises:
        DataError: see `load_folder`.
    """
    if not root.is_dir():
        raise DataError(f"--data-dir {root}: {'not a folder' if root.exists() else 'no such folder'}")
    # A class may be called "train": only a folder of folders is a split.
    if "train" in _subfolders(root) and _subfolders(root / "train"):
        folders = {split: root / split for split in _SPLITS if (root / split).is_dir()}
        unused = sorted(set(_subfolders(root)) - set(_SPLITS))
        if unused:
            _logger.warning("%s: beside train, val and test these folders are not used: %s", root, ", ".join(unused))
    else:
        folders = {"train": root}
    class_names = tuple(_subfolders(folders["train"]))
    _check_classes(folders, class_names)
    files = {
        split: [(path, label) for label, name in enumerate(class_names) for path in pictures_in(folder / name)]
        for split, folder in folders.items()
    }
    _check_files(folders, class_names, files)
    return Listing(root, class_names, files)


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None


def pictures_in(folder: Path) -> Iterator[Path]:
    """Pictures at any depth, sorted; hidden files and folders and other kinds of files are not looked at.

    Raises:
        DataError: if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # val/ and test/ need not have every class
            raise DataError(f"{error.filename}: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(place, name)


def _check_classes(folders: dict[str, Path], class_names: tuple[str, ...]) -> None:
    train = folders["train"]
    if not class_names:
        raise DataError(f"{train}: no class folders; expected DIR/<class>/… or DIR/train/<class>/…")
    if len(class_names) == 1:
        raise DataError(f"{train}: only one class folder ({class_names[0]}); there must be at least two")
    for name in class_names:
        if not name.isprintable():
            raise DataError(f"{train}: class folder {name!a} cannot be printed; rename it")
    for split, folder in folders.items():
        unknown = sorted(set(_subfolders(folder)) - set(class_names))
        if unknown:
            raise DataError(f"{folder}: class {unknown[0]!r} of {split} is not in {train}; add it there or remove it here")


def _check_files(folders: dict[str, Path], class_names: tuple[str, ...], files: dict[str, list[tuple[Path, int]]]) -> None:
    kinds = ", ".join(SUFFIXES)
    for split, pairs in files.items():
        if not pairs:
            raise DataError(f"{folders[split]}: no pictures in its class folders ({kinds})")
    present = {label for _, label in files["train"]}
    for label, name in enumerate(class_names):
        if label not in present:
            raise DataError(f"{folders['train'] / name}: no pictures ({kinds}); add some or remove the folder")


def _decode(listing: Listing, size_px: int, policy: ResizePolicy, allocate: cache.Allocate, progress: StartTask) -> DatasetSplits:
    """Decodes all splits, in threads: Pillow works outside Python's lock."""
    total = sum(map(len, listing.files.values()))
    threads = decoding_threads()
    _logger.info("decoding %s pictures of %s in %d threads", f"{total:,}", listing.root, threads)
    start_s = time.perf_counter()
    broken: list[str] = []
    parts: dict[str, ImageDataset] = {}
    on_decoded = progress("decoding", total)
    with ThreadPool(threads) as pool:
        for split, files in listing.files.items():
            images = allocate(split, len(files), size_px)
            sound = np.ones(len(files), np.bool_)
            for row, error in enumerate(pool.imap(decoder(files, images, size_px, policy), range(len(files)), chunksize=16)):
                on_decoded(1)
                if error is not None:
                    sound[row] = False
                    broken.append(error)
                    check_broken(listing, broken)
            labels = np.array([label for _, label in files], np.int64)
            names = np.array([os.fsencode(path.relative_to(listing.root)) for path, _ in files])
            parts[split] = ImageDataset(_compact(images, sound), labels[sound], listing.class_names, names[sound])
    for error in broken:
        _logger.warning("skipped %s", error)
    check_present(listing, parts)
    _logger.info("decoded %s pictures in %.1f s, %d skipped", f"{total:,}", time.perf_counter() - start_s, len(broken))
    return DatasetSplits(listing.name, parts["train"], parts.get("val"), parts.get("test"))


def decoding_threads() -> int:
    """How many threads decode pictures here: one a CPU, up to a bound."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, _MOST_THREADS)


def decoder(
    files: list[tuple[Path, int]], images: npt.NDArray[np.uint8], size_px: int, policy: ResizePolicy
) -> Callable[[int], str | None]:
    """A function that fills one row of `images` and returns what is wrong with its file, if anything is."""

    def decode(row: int) -> str | None:
        try:
            images[row] = fit(decode_image(files[row][0]), size_px, policy)
        except ImageError as error:
            return str(error)
        return None

    return decode


def _compact(images: npt.NDArray[np.uint8], sound: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Moves the sound rows to the front, in place; returns them."""
    rows = np.flatnonzero(sound)
    if len(rows) < len(images):
        for start in range(0, len(rows), 1024):
            images[start : start + 1024][: len(rows) - start] = images[rows[start : start + 1024]]
    return images[: len(rows)]


def check_broken(listing: Listing, broken: list[str]) -> None:
    """Refuses a folder of which more than 1 % is broken.

    Raises:
        DataError: naming the first.
    """
    total = sum(map(len, listing.files.values()))
    if len(broken) > LARGEST_BROKEN_SHARE * total:
        raise DataError(f"{listing.root}: more than 1 % of {total:,} pictures are broken, first {'; '.join(broken[:3])}")


def check_present(listing: Listing, parts: dict[str, ImageDataset]) -> None:
    """Refuses a folder of which a split, or a class of `train`, has no sound picture.

    Raises:
        DataError: naming it.
    """
    for split, part in parts.items():
        if not len(part):
            raise DataError(f"{listing.root}: every picture of {split} is broken")
    for label, count in enumerate(parts["train"].class_counts()):
        if count == 0:
            raise DataError(f"{listing.root}: every picture of class {listing.class_names[label]!r} is broken")

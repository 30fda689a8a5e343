"""Load a folder of pictures with one subfolder per class."""

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
from cifar_ray.data.decode import DECODER_VERSION, decode_square
from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import DataError, ImageError

LARGEST_BROKEN_SHARE = 0.01

_LAYOUT = b"with file names\0"  # invalidates cache entries without file names
_MAX_THREADS = 16  # small pictures spend half their time in Python: more threads would only wait for the GIL
_SPLITS = ("train", "val", "test")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The picture files of a folder, not opened yet.

    Attributes:
        root: the folder.
        class_names: names of the class folders of `train`, sorted.
        files: `(path, label)` by split, in the order of class and path; only `train` if the folder has no split folders.
    """

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]

    @property
    def name(self) -> str:
        """The folder's name, converted to a valid model name."""
        plain = unicodedata.normalize("NFKD", self.root.resolve().name).encode("ascii", "ignore").decode()
        return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:100] or "folder"

    def fingerprint(self) -> str:
        """sha256 of path, size and modification time of each file."""
        digest = hashlib.sha256(_LAYOUT + os.fsencode(self.root))
        for split, files in self.files.items():
            for path, label in files:
                try:
                    state = path.stat()
                    about = f"{split}\0{label}\0{state.st_size}\0{state.st_mtime_ns}\0"
                except OSError:  # a dangling link: decoding will report it
                    about = f"{split}\0{label}\0missing\0"
                digest.update(about.encode() + os.fsencode(path) + b"\0")
        return digest.hexdigest()


def load_folder(root: Path, size_px: int, policy: ResizePolicy, progress: StartTask = no_progress) -> DatasetSplits:
    """Load `root/train/<class>/…` with optional `val/` and `test/`, or `root/<class>/…`; decode it on first use.

    Pictures may be at any depth below their class folder. Hidden files and other file types are ignored.
    A damaged picture is logged and skipped.

    Raises:
        DataError: if the folder is missing or has another layout, a class is empty or unknown, there is only one class, or more than 1 % of
            the pictures are damaged.
    """
    listing = list_folder(root)
    entry = f"{listing.name}-{size_px}px-{policy}-v{DECODER_VERSION}-{listing.fingerprint()[:16]}"
    return cache.load_or_build(entry, lambda allocate: _decode(listing, size_px, policy, allocate, progress))


def list_folder(root: Path) -> Listing:
    """Find classes and pictures, and check the layout of the folder.

    Raises:
        DataError: see `load_folder`.
    """
    if not root.is_dir():
        raise DataError(f"--data-dir {root}: {'not a folder' if root.exists() else 'folder not found'}")
    # A class may be named "train": only a folder of folders is a split.
    if "train" in _subfolders(root) and _subfolders(root / "train"):
        folders = {split: root / split for split in _SPLITS if (root / split).is_dir()}
        unused = sorted(set(_subfolders(root)) - set(_SPLITS))
        if unused:
            _logger.warning("%s: ignoring folders other than train, val and test: %s", root, ", ".join(unused))
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
    """Find pictures at any depth, sorted; ignores hidden files and folders and other file types.

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
        raise DataError(f"{train}: no class folders found; expected DIR/<class>/… or DIR/train/<class>/…")
    if len(class_names) == 1:
        raise DataError(f"{train}: only one class folder found ({class_names[0]}); at least two are needed")
    for name in class_names:
        if not name.isprintable():
            raise DataError(f"{train}: the name of class folder {name!a} has unprintable characters; rename it")
    for split, folder in folders.items():
        unknown = sorted(set(_subfolders(folder)) - set(class_names))
        if unknown:
            raise DataError(
                f"{folder}: class {unknown[0]!r} has no folder in {train}; add training images for it, or remove it from {split}"
            )


def _check_files(folders: dict[str, Path], class_names: tuple[str, ...], files: dict[str, list[tuple[Path, int]]]) -> None:
    kinds = ", ".join(SUFFIXES)
    for split, pairs in files.items():
        if not pairs:
            raise DataError(f"{folders[split]}: no pictures found in its class folders. Supported: {kinds}")
    present = {label for _, label in files["train"]}
    for label, name in enumerate(class_names):
        if label not in present:
            raise DataError(f"{folders['train'] / name}: no pictures found; add some ({kinds}) or remove the folder")


def _decode(listing: Listing, size_px: int, policy: ResizePolicy, allocate: cache.Allocate, progress: StartTask) -> DatasetSplits:
    """Decode all splits in threads; Pillow releases the GIL."""
    total = sum(map(len, listing.files.values()))
    threads = decoding_threads()
    _logger.info("decoding %s pictures of %s in %d threads", f"{total:,}", listing.root, threads)
    start_s = time.perf_counter()
    errors: list[str] = []
    parts: dict[str, ImageDataset] = {}
    on_decoded = progress("decoding", total)
    with ThreadPool(threads) as pool:
        for split, files in listing.files.items():
            images = allocate(split, len(files), size_px)
            intact = np.ones(len(files), np.bool_)
            for row, error in enumerate(pool.imap(decoder(files, images, size_px, policy), range(len(files)), chunksize=16)):
                on_decoded(1)
                if error is not None:
                    intact[row] = False
                    errors.append(error)
                    check_broken(listing, errors)
            labels = np.array([label for _, label in files], np.int64)
            names = np.array([os.fsencode(path.relative_to(listing.root)) for path, _ in files])
            parts[split] = ImageDataset(_compact(images, intact), labels[intact], listing.class_names, names[intact])
    for error in errors:
        _logger.warning("skipped %s", error)
    check_present(listing, parts)
    _logger.info("decoded %s pictures in %.1f s, %d skipped", f"{total:,}", time.perf_counter() - start_s, len(errors))
    return DatasetSplits(listing.name, parts["train"], parts.get("val"), parts.get("test"))


def decoding_threads() -> int:
    """Number of threads that decode pictures on this host: one per CPU, up to a maximum."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, _MAX_THREADS)


def decoder(
    files: list[tuple[Path, int]], images: npt.NDArray[np.uint8], size_px: int, policy: ResizePolicy
) -> Callable[[int], str | None]:
    """A function that decodes file `row` into `images[row]`; it returns the error message, or `None`."""

    def decode(row: int) -> str | None:
        try:
            images[row] = decode_square(files[row][0], size_px, policy)
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


def check_broken(listing: Listing, errors: list[str]) -> None:
    """Check that at most 1 % of the pictures are damaged.

    Raises:
        DataError: with the first three.
    """
    total = sum(map(len, listing.files.values()))
    if len(errors) > LARGEST_BROKEN_SHARE * total:
        first = "; ".join(errors[:3])
        raise DataError(f"{listing.root}: more than 1 % of {total:,} pictures are damaged; repair or remove them. The first are: {first}")


def check_present(listing: Listing, parts: dict[str, ImageDataset]) -> None:
    """Check that each split, and each class of `train`, has an intact picture.

    Raises:
        DataError: if one has none.
    """
    for split, part in parts.items():
        if not len(part):
            raise DataError(f"{listing.root}: all pictures of split {split} are damaged; replace them")
    for label, count in enumerate(parts["train"].class_counts()):
        if count == 0:
            raise DataError(f"{listing.root}: all pictures of class {listing.class_names[label]!r} are damaged; replace them")

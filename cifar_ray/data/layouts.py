"""Find classes, splits and pictures in a folder with any of the usual layouts; another layout is an error of one line."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.errors import DataError

MAX_CLASSES = 10_000

_LAYOUT = b"with file names\0"  # invalidates cache entries without file names
# Names of the folder of each split in any case, the preferred one first
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "holdout"),
}
# Of network storage, archives and operating systems; hidden ones are ignored, too
_NO_CLASSES = frozenset(
    ("@eadir", "__macosx", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "lost+found", "system volume information")
)
_NO_FILES = frozenset(("thumbs.db", "desktop.ini"))
_EXPECTED = "expected DIR/<class>/… or DIR/train/<class>/… with optional val/ and test/"
_MAX_STEPS = 3
_MAX_COUNTED = 100_000  # files that an error message counts
_MAX_KINDS = 5
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The picture files of a folder, not opened yet.

    Attributes:
        root: the folder that has the class folders or the split folders.
        class_names: names of the class folders of `train`, sorted.
        files: `(path, label)` by split, in the order of class and path; only `train` if the folder has no split folders.
        given: the folder that the user named, if `root` is the only folder in it.
    """

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]
    given: Path | None = None

    @property
    def name(self) -> str:
        """The folder's name, converted to a valid model name."""
        plain = unicodedata.normalize("NFKD", (self.given or self.root).resolve().name).encode("ascii", "ignore").decode()
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


def list_folder(root: Path) -> Listing:
    """Find classes and pictures, and check the layout of the folder.

    It takes `root/<class>/…` and `root/train/<class>/…` with optional `val/` and `test/`, under any of their usual names. If `root` has
    nothing but one folder of folders, it looks there.

    Raises:
        DataError: if the folder is missing or has another layout, has too many classes, a class is empty or unknown, or there is
            only one class.
    """
    if not root.is_dir():
        raise DataError(f"--data-dir {root}: {'not a folder' if root.exists() else 'folder not found'}")
    given, root = root, _step_in(root)
    folders = _split_folders(root)
    class_names = tuple(_subfolders(folders["train"]))
    _check_classes(folders, class_names)
    others: Counter[str] = Counter()
    files = {
        split: [(path, label) for label, name in enumerate(class_names) for path in pictures_in(folder / name, others)]
        for split, folder in folders.items()
    }
    _check_files(folders, class_names, files)
    if others:
        files_are = "files that are no pictures" if others.total() > 1 else "file that is no picture"
        _logger.info("%s: left out %s %s: %s", root, f"{others.total():,}", files_are, _kinds(others))
    return Listing(root, class_names, files, None if given == root else given)


def pictures_in(folder: Path, others: Counter[str] | None = None) -> Iterator[Path]:
    """Find pictures by their suffix at any depth, sorted; ignores hidden files and folders, and follows links, but not in circles.

    Args:
        folder: where to look.
        others: counts the suffixes of other files.

    Raises:
        DataError: if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # val/ and test/ need not have every class
            raise DataError(f"{error.filename}: {error.strerror}")

    # The folders above are in the set, too: a link to one of them would find the pictures of all classes.
    visited = {_identity(above) for above in folder.absolute().parents}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        identity = _identity(Path(place))
        if identity in visited:
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        for name in sorted(names):
            if name.startswith(".") or name.lower() in _NO_FILES:
                continue
            if name.lower().endswith(SUFFIXES):
                yield Path(place, name)
            elif others is not None:
                others[Path(name).suffix.lower()] += 1


def _identity(folder: Path) -> tuple[int, int]:
    try:
        state = folder.stat()
    except OSError:
        return -1, hash(folder)
    return state.st_dev, state.st_ino


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _NO_CLASSES


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_ignored(path.name))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None


def _has_pictures(folder: Path) -> bool:
    return any(path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".") for path in folder.iterdir() if not path.is_dir())


def _step_in(root: Path) -> Path:
    """The folder inside, as long as there is nothing but one folder of folders: archives are often unpacked like this."""
    for _ in range(_MAX_STEPS):
        inside = _subfolders(root)
        if len(inside) != 1 or _has_pictures(root):
            break
        only = root / inside[0]
        if _is_name_of("train", only.name) or not _subfolders(only) or _has_pictures(only):
            break
        _logger.info("%s has only the folder %s: looking there", root, only.name)
        root = only
    return root


def _is_name_of(split: str, name: str) -> bool:
    return name.casefold() in _SPLITS[split]


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; `root` is that of `train` if it has no split folders."""
    inside = _subfolders(root)
    # A class may be named "train": only a folder of folders is a split.
    found: dict[str, list[str]] = {split: [name for name in inside if _is_name_of(split, name)] for split in _SPLITS}
    found["train"] = [name for name in found["train"] if _subfolders(root / name)]
    if not found["train"]:
        held = [name for split in ("val", "test") for name in found[split] if _subfolders(root / name)]
        if held and len(held) == len(inside):
            raise DataError(f"{root}: found {' and '.join(held)}, but no train folder; {_EXPECTED}")
        return {"train": root}
    folders = {
        split: root / min(names, key=lambda name: (_SPLITS[split].index(name.casefold()), name != name.casefold()))
        for split, names in found.items()
        if names
    }
    unused = sorted(set(inside) - {folder.name for folder in folders.values()})
    if unused:
        _logger.warning("%s: ignoring folders other than train, val and test: %s", root, ", ".join(unused))
    return folders


def _check_classes(folders: dict[str, Path], class_names: tuple[str, ...]) -> None:
    train = folders["train"]
    if not class_names:
        raise DataError(f"{train}: found {_describe(train)}, no class folders; {_EXPECTED}")
    if len(class_names) > MAX_CLASSES:
        raise DataError(f"{train}: found {len(class_names):,} class folders; the maximum is {MAX_CLASSES:,}; {_EXPECTED}")
    if len(class_names) == 1:
        raise DataError(f"{train}: only one class folder found ({class_names[0]}); at least two are needed; {_EXPECTED}")
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
    supported = ", ".join(SUFFIXES)
    for split, pairs in files.items():
        if not pairs:
            found = _describe(folders[split])
            raise DataError(f"{folders[split]}: found {found}, no pictures in its class folders. Supported: {supported}")
    present = {label for _, label in files["train"]}
    for label, name in enumerate(class_names):
        if label not in present:
            found = _describe(folders["train"] / name)
            raise DataError(f"{folders['train'] / name}: found {found}, no pictures; add some ({supported}) or remove the folder")


def _describe(folder: Path) -> str:
    """What files are in a folder, for an error message: `34 .mp4 and 2 .pdf files`."""
    counts: Counter[str] = Counter()
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_ignored(name)]
        counts.update(Path(name).suffix.lower() for name in names if not name.startswith("."))
        if counts.total() > _MAX_COUNTED:
            break
    if not counts:
        return "no files"
    return f"{_kinds(counts, ' and ')} file{'s' * (counts.total() != 1)}"


def _kinds(counts: Counter[str], last: str = ", ") -> str:
    """`10 .txt, 2 without a suffix`, the most frequent first."""
    named = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts.most_common(_MAX_KINDS)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_MAX_KINDS))
    named += [f"{rest:,} other"] if rest else []
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])}{last}{named[-1]}"

"""Find classes, splits and pictures in a folder with any of the usual layouts; another layout is an error of one line."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.decoding.picture_files import PictureFilter, counted, describe, direct_pictures, is_ignored, pictures_in
from cifar_ray.data.reading.picture_source import Pictures
from cifar_ray.errors import DataError
from cifar_ray.metrics.accuracy import Labels

MAX_CLASSES = 10_000

_LAYOUT = b"arrays\0"  # part of the fingerprint: change it to invalidate cached data sets
_MAX_STATED = 20_000
# Names of the folder of each split, the preferred one first, compared without case, digits, punctuation and the words below
SPLITS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout"),
}
_SAYS_NOTHING = re.compile("set|data|dataset|images?|imgs?|pictures?|pics?|photos?|folder|files|split|seg|new|old|final|copy|zip|x")
_ENDING = re.compile(r"(?<=.)(set|data|dataset|images?|imgs?|pictures?|pics?|photos?|split)$")
_UNPRINTABLE = frozenset(("Cc", "Cs", "Zl", "Zp"))  # as categories of Unicode; joiners, emoji and spaces of any kind are fine
_EXPECTED = "expected DIR/<class>/… or DIR/train/<class>/… with optional val/ and test/"
_MAX_STEPS = 3
_MAX_NAMED = 3
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """The pictures of one split, with their labels.

    Attributes:
        pictures: N pictures.
        labels: int64 `[N]`, from 0 to the number of classes - 1; with several labels per picture uint8 `[N, C]` of 0 and 1.
        weights: float32 `[N]`, weight of each picture in the loss; `None` if all count the same.
    """

    pictures: Pictures
    labels: Labels
    weights: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Listing:
    """The pictures of a data set, not opened yet.

    Attributes:
        root: the folder that has the class folders, the split folders or the table.
        class_names: names of the classes of `train`, sorted.
        parts: the pictures by split; sorted by class and path for class folders, in the order of the rows for a table; only `train` if
            there are no other splits.
        given: the folder or file that the user named, if it is not `root`: a folder whose only content is `root`, or a table in `root`.
        is_table: whether a table lists the pictures.
        class_descriptions: description by class name, without classes that have none. It is not part of the fingerprint, because a
            changed text changes no picture.
    """

    root: Path | str
    class_names: tuple[str, ...]
    parts: dict[str, Part]
    given: Path | str | None = None
    is_table: bool = False
    class_descriptions: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    @property
    def pictures(self) -> Pictures:
        """The pictures of all splits, in the order of `parts`."""
        return Pictures.join([part.pictures for part in self.parts.values()])

    @property
    def labels(self) -> Labels:
        """The labels of all splits, in the order of `parts`."""
        return np.concatenate([part.labels for part in self.parts.values()])

    @property
    def name(self) -> str:
        """Name of the folder or file that the user named, converted to a valid model name."""
        given = self.given or self.root
        last = Path(given.partition("?")[0]).name if isinstance(given, str) else given.resolve().name
        plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode()
        return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:100] or "folder"

    def fingerprint(self) -> str:
        """sha256 of path, label, size and modification time of each picture.

        Pictures in tars and tables have the size and time of the tar or table. If a table lists more than 20,000 files, the sizes and
        times of about 1,000 count: reading those of a million takes seconds on a local disk, and many minutes on network storage.
        """
        digest = hashlib.sha256(_LAYOUT + os.fsencode(self.root) + "\0".join(self.class_names).encode())
        for split, part in self.parts.items():
            digest.update(split.encode() + part.labels.tobytes() + (b"" if part.weights is None else part.weights.tobytes()))
            digest.update(part.pictures.fingerprint(_MAX_STATED if self.is_table else None))
        return digest.hexdigest()


def list_folder(root: Path) -> Listing:
    """Find classes and pictures, and check the layout of the folder.

    The layout is `root/<class>/…`, or `root/train/<class>/…` with optional `val/` and `test/`, which may have any of their usual names.
    If `root` has nothing but one folder of folders, that folder is used instead.

    Raises:
        DataError: if the folder is missing or has another layout, has too many classes, a class is empty or unknown, or there is
            only one class.
    """
    if not root.is_dir():
        raise DataError(f"--data-dir {root}: {'not a folder' if root.exists() else 'folder not found'}")
    given, root = root, _step_in(root)
    folders = _split_folders(root)
    classes = {split: _class_folders(folder) for split, folder in folders.items()}
    _check_classes(folders, classes)
    picture_filter = PictureFilter()
    files = {
        split: [
            (path, label)
            for label, name in enumerate(classes["train"])
            for folder in classes[split].get(name, ())
            for path in pictures_in(folder, picture_filter)
        ]
        for split in folders
    }
    _check_files(folders, classes["train"], files)
    for place in {root, *folders.values()}:
        for path in place.iterdir():
            picture_filter.enters(path.name)
        _report_strays(place)
    picture_filter.report(root)
    _report_nested(root, classes["train"], files["train"])
    # A name stays as it is on disk, unless several folders share it.
    class_names = tuple(found[0].name if len(found) == 1 else name for name, found in classes["train"].items())
    parts = {
        split: Part(Pictures.of_files(root, (path for path, _ in pairs)), np.array([label for _, label in pairs], np.int64))
        for split, pairs in files.items()
    }
    return Listing(root, class_names, parts, None if given == root else given)


def is_unprintable(name: str) -> bool:
    """Whether the name of a class has control characters, line breaks or broken characters."""
    return bool(_UNPRINTABLE.intersection(map(unicodedata.category, name)))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones and those of network storage."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_ignored(path.name))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class folders by name in Unicode's composed form: macOS decomposes names, and others do not, so two folders may share one."""
    found: dict[str, list[Path]] = {}
    for name in subfolders(folder):
        found.setdefault(unicodedata.normalize("NFC", name), []).append(folder / name)
    return found


def _has_pictures(folder: Path) -> bool:
    return bool(direct_pictures(folder))


def _step_in(root: Path) -> Path:
    """Go down while a folder has nothing but one folder of folders, at most three levels: unpacking an archive often adds such folders."""
    for _ in range(_MAX_STEPS):
        inside = subfolders(root)
        if len(inside) != 1 or _has_pictures(root):
            break
        only = root / inside[0]
        if is_name_of("train", only.name) or not subfolders(only) or _has_pictures(only):
            break
        _logger.info("%s has only the folder %s: looking there", root, only.name)
        root = only
    return root


def is_name_of(split: str, name: str) -> bool:
    """Whether a folder or value of this name stands for a split."""
    return _plain(name) in SPLITS[split]


def _plain(name: str) -> str:
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", name).casefold())
    return _ENDING.sub("", "".join(word for word in words if not _SAYS_NOTHING.fullmatch(word)))


def _step_into_split(folder: Path) -> Path:
    """The folder inside a split's folder, if that has nothing but one folder of folders, as in `seg_train/seg_train/<class>`."""
    inside = subfolders(folder)
    only = folder / inside[0] if len(inside) == 1 and not _has_pictures(folder) else None
    return only if only is not None and subfolders(only) and not _has_pictures(only) else folder


def _split_folders(root: Path) -> dict[str, Path]:
    """Folder of each split; if `root` has no split folders, `root` is the folder of `train`."""
    inside = subfolders(root)
    # A class may be named "train": only a folder of folders is a split.
    found: dict[str, list[str]] = {split: [name for name in inside if is_name_of(split, name)] for split in SPLITS}
    found["train"] = [name for name in found["train"] if subfolders(root / name)]
    if not found["train"]:
        held = [name for split in ("val", "test") for name in found[split] if subfolders(root / name)]
        if held and len(held) == len(inside):
            raise DataError(f"{root}: found {' and '.join(held)}, but no train folder; {_EXPECTED}")
        return {"train": root}
    folders = {
        split: root
        / min(names, key=lambda name: (SPLITS[split].index(_plain(name)), name.casefold() != _plain(name), name != _plain(name)))
        for split, names in found.items()
        if names
    }
    unused = sorted(set(inside) - {folder.name for folder in folders.values()})
    if unused:
        _logger.warning("%s: ignoring folders other than train, val and test: %s", root, ", ".join(unused))
    folders = {split: _step_into_split(folder) for split, folder in folders.items()}
    return {split: folder for split, folder in folders.items() if split == "train" or _has_labels(folder)}


def _has_labels(folder: Path) -> bool:
    """Whether a split has class folders or no pictures; warns if not: competitions publish test pictures without their classes."""
    pictures = [] if subfolders(folder) else direct_pictures(folder)
    if pictures:
        _logger.warning("%s: left out %s without class folders", folder, counted(len(pictures), "picture"))
    return not pictures


def _report_strays(folder: Path) -> None:
    if strays := sorted(direct_pictures(folder)):
        named = ", ".join(strays[:_MAX_NAMED]) + (", …" if len(strays) > _MAX_NAMED else "")
        _logger.warning("%s: left out %s beside the class folders: %s", folder, counted(len(strays), "picture"), named)


def _report_nested(root: Path, classes: dict[str, list[Path]], files: list[tuple[Path, int]]) -> None:
    """Log the classes whose pictures are all in two or more subfolders: the user may have meant the subfolders as classes."""
    inside: dict[int, set[str]] = {}
    all_folders = [set(found) for found in classes.values()]
    for path, label in files:
        above = [path, *path.parents]
        place = next(number for number, folder in enumerate(above) if folder in all_folders[label])
        inside.setdefault(label, set()).add("" if place == 1 else above[place - 1].name)
    nested = [
        f"{name} ({', '.join(sorted(inside[label])[:_MAX_NAMED])}{', …' if len(inside[label]) > _MAX_NAMED else ''})"
        for label, name in enumerate(classes)
        if "" not in inside[label] and len(inside[label]) > 1
    ]
    if nested:
        more = f" and {len(nested) - _MAX_NAMED:,} more" if len(nested) > _MAX_NAMED else ""
        _logger.info("%s: folders inside a class folder belong to its class: %s%s", root, ", ".join(nested[:_MAX_NAMED]), more)


def _check_classes(folders: dict[str, Path], classes: dict[str, dict[str, list[Path]]]) -> None:
    train, class_names = folders["train"], list(classes["train"])
    if not class_names:
        raise DataError(f"{train}: found {describe(train)}, no class folders; {_EXPECTED}")
    if len(class_names) > MAX_CLASSES:
        raise DataError(f"{train}: found {len(class_names):,} class folders; the maximum is {MAX_CLASSES:,}; {_EXPECTED}")
    if len(class_names) == 1:
        raise DataError(f"{train}: only one class folder found ({class_names[0]}); at least two are needed; {_EXPECTED}")
    for name in class_names:
        if is_unprintable(name):
            raise DataError(f"{train}: the name of class folder {name!a} has unprintable characters; rename it")
    for split, folder in folders.items():
        unknown = sorted(set(classes[split]) - set(class_names))
        if unknown:
            raise DataError(
                f"{folder}: class {unknown[0]!r} has no folder in {train}; add training images for it, or remove it from {split}"
            )


def _check_files(folders: dict[str, Path], classes: dict[str, list[Path]], files: dict[str, list[tuple[Path, int]]]) -> None:
    supported = ", ".join(SUFFIXES)
    for split, pairs in files.items():
        if not pairs:
            found = describe(folders[split])
            raise DataError(f"{folders[split]}: found {found}, no pictures in its class folders. Supported: {supported}")
    present = {label for _, label in files["train"]}
    for label, (first, *_) in enumerate(classes.values()):
        if label not in present:
            raise DataError(f"{first}: found {describe(first)}, no pictures; add some ({supported}) or remove the folder")

"""Find the picture files of a folder, and report the files that are left out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cifar_ray.data.decoding.formats import SUFFIXES
from cifar_ray.data.decoding.special_files import special_kind
from cifar_ray.errors import DataError

# Folders that network storage, archives and operating systems create; hidden folders are ignored, too
_OF_STORAGE = frozenset(
    ("@eadir", "__macosx", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "lost+found", "system volume information")
)
_NO_FILES = frozenset(("thumbs.db", "desktop.ini"))
_MAX_COUNTED = 100_000  # an error message stops counting files here
_MAX_KINDS = 5
_logger = logging.getLogger(__name__)


class PictureFilter:
    """Selects pictures by their suffix, and counts what it leaves out.

    It leaves out other files, special files such as named pipes, and folders of network storage. It also leaves out hidden files and
    folders, but does not count them.
    """

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.folders: Counter[str] = Counter()
        self.special: Counter[str] = Counter()

    def accepts(self, file: str) -> bool:
        """Whether a file of this name is a picture."""
        if file.startswith(".") or file.lower() in _NO_FILES:
            return False
        if file.lower().endswith(SUFFIXES):
            return True
        self.files[Path(file).suffix.lower()] += 1
        return False

    def accepts_entry(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file is a picture by its name, and can be read: a named pipe would block its reader."""
        if not self.accepts(entry.name):
            return False
        kind = special_kind(entry)
        if kind:
            self.special[kind] += 1
        return not kind

    def enters(self, folder: str) -> bool:
        """Whether a folder of this name may contain pictures."""
        self.folders[folder] += folder.casefold() in _OF_STORAGE
        return not is_ignored(folder)

    def report(self, where: object) -> None:
        """Log a line for the files, one for special files and one for the folders."""
        if self.files:
            files_are = "files that are not pictures" if self.files.total() > 1 else "file that is not a picture"
            _logger.info("%s: left out %s %s: %s", where, f"{self.files.total():,}", files_are, _kinds(self.files))
        if self.special:
            kinds = ", ".join(counted(count, kind) for kind, count in self.special.most_common())
            _logger.info("%s: left out files that cannot be read as pictures: %s", where, kinds)
        if self.folders.total():
            _logger.info("%s: left out folders of network storage, archives or the system: %s", where, _kinds(+self.folders))


def pictures_in(folder: Path, picture_filter: PictureFilter) -> Iterator[Path]:
    """Find pictures by their suffix at any depth, sorted. Ignores hidden files and folders. Follows links, but visits each folder once.

    Args:
        folder: where to look.
        picture_filter: selects files and folders, and counts what it leaves out.

    Raises:
        DataError: if a folder cannot be read.
    """
    # The parent folders count as visited: following a link to one of them would find the pictures of all classes.
    visited = {_identity(above) for above in folder.absolute().parents}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        identity = _identity(place)
        if identity in visited:
            continue
        visited.add(identity)
        inside = _entries(place)
        folders = [entry.name for entry in inside if _is_folder(entry) and picture_filter.enters(entry.name)]
        waiting += [place / name for name in reversed(folders)]
        yield from (Path(entry.path) for entry in inside if not _is_folder(entry) and picture_filter.accepts_entry(entry))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted by name; an entry knows whether it is a folder without another system call."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:  # val/ and test/ need not have every class
        return []
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        state = folder.stat()
    except OSError:
        return -1, hash(folder)
    return state.st_dev, state.st_ino


def is_ignored(name: str) -> bool:
    """Whether a folder or file of this name is hidden, or made by network storage, an archive or the system."""
    return name.startswith(".") or name.casefold() in _OF_STORAGE


def direct_pictures(folder: Path) -> list[str]:
    """Names of the pictures directly in a folder, sorted; subfolders are not searched."""
    picture_filter = PictureFilter()
    return [entry.name for entry in _entries(folder) if not _is_folder(entry) and picture_filter.accepts_entry(entry)]


def describe(folder: Path) -> str:
    """Describe the files in a folder for an error message: `34 .mp4 and 2 .pdf files and 1 file without a suffix`."""
    counts: Counter[str] = Counter()
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_ignored(name)]
        counts.update(Path(name).suffix.lower() for name in names if not name.startswith("."))
        if counts.total() > _MAX_COUNTED:
            break
    if not counts:
        return "no files"
    bare = counts.pop("", 0)
    found = [f"{_kinds(counts, ' and ')} file{'s' * (counts.total() != 1)}"] if counts else []
    found += [f"{counted(bare, 'file')} without a suffix"] if bare else []
    return " and ".join(found)


def counted(count: int, what: str) -> str:
    """Count and noun, with a plural s where needed: `3 pictures`, `1 picture`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def _kinds(counts: Counter[str], last: str = ", ") -> str:
    """List counts of suffixes, the most frequent first: `10 .txt, 2 without a suffix`."""
    named = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts.most_common(_MAX_KINDS)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_MAX_KINDS))
    named += [f"{rest:,} other"] if rest else []
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])}{last}{named[-1]}"

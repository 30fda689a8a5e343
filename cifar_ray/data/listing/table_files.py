"""Find the tables of a folder: one for all pictures, or one for each split."""

from __future__ import annotations

from pathlib import Path

from cifar_ray.data.listing.columns import find_columns
from cifar_ray.data.listing.readers import SUFFIXES, read_table
from cifar_ray.errors import DataError

ALL = "all"  # in place of a split: the table covers all splits

# Names that say that a table holds labels, without the suffix; the preferred one first
_NAMES = (
    "metadata",
    "_classes",
    "labels",
    "annotations",
    "train",
    "training",
    "train_labels",
    "_annotations.coco",
    "instances_default",
    "data",
)
_HELD_OUT = {"val": ("val", "valid", "validation", "dev"), "test": ("test", "testing", "holdout")}


def tables_in(folder: Path, columns: str = "") -> dict[str, Path]:
    """Tables of a folder by split; one under `ALL` if it covers all splits; empty if the folder has none.

    Args:
        folder: where to look.
        columns: `--columns` of the user.
    """
    found = {path.stem.casefold(): path for path in _candidates(folder)}
    main = next((found[name] for name in _NAMES if name in found and _has_labels(found[name], columns)), None)
    if main is None:
        return {}
    held_out = {split: next((found[name] for name in names if name in found), None) for split, names in _HELD_OUT.items()}
    parts = {split: path for split, path in held_out.items() if path is not None and _has_labels(path, columns)}
    return {"train": main, **parts} if parts else {ALL: main}


def only_table(folder: Path) -> Path | None:
    """The table of a folder that has one file that may be a table, whatever its name."""
    found = _candidates(folder)
    return found[0] if len(found) == 1 else None


def _candidates(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _has_labels(path: Path, columns: str) -> bool:
    """Whether a file is a table with a picture and a label in each row, and not, for example, settings or a list of test pictures."""
    try:
        find_columns(path, read_table(path), columns)
    except DataError:
        return False
    return True

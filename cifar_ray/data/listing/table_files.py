"""Find the tables of a folder: one for all pictures, or one for each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cifar_ray.data.listing.columns import find_columns
from cifar_ray.data.listing.readers import SUFFIXES, LabelTable, read_table
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


def tables_in(folder: Path, columns: str | None = None) -> dict[str, LabelTable]:
    """Tables of a folder by split; one under `ALL` if it covers all splits; empty if the folder has none.

    Args:
        folder: where to look.
        columns: `--columns` of the user.
    """
    found = {path.stem.casefold(): path for path in _candidates(folder)}
    main = _first(found, _NAMES, columns)
    if main is None:
        return {}
    held_out = {split: table for split, names in _HELD_OUT.items() if (table := _first(found, names, columns)) is not None}
    return {"train": main, **held_out} if held_out else {ALL: main}


def only_table(folder: Path) -> Path | None:
    """The table of a folder that has one file that may be a table, whatever its name."""
    found = _candidates(folder)
    return found[0] if len(found) == 1 else None


def _candidates(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _first(found: Mapping[str, Path], names: Sequence[str], columns: str | None) -> LabelTable | None:
    """The first file of these names with a picture and a label in each row; others may hold settings, or a list of test pictures."""
    for path in (found[name] for name in names if name in found):
        with suppress(DataError):
            table = read_table(path)
            find_columns(table, columns)
            return table
    return None

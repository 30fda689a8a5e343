"""Splits of a folder of pictures, as trees of links."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Files = Mapping[str, list[Path]]


def pictures(folder: Path, limit: int | None = None) -> dict[str, list[Path]]:
    """Pictures of each class folder, at most `limit` of each, in the order of their names."""
    found = {path.name: sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES) for path in sorted(folder.iterdir())}
    return {name: files[:limit] for name, files in found.items() if files}


def split(files: Files, shares: Mapping[str, float], seed: int) -> dict[str, dict[str, list[Path]]]:
    """Split each class at random.

    Args:
        files: pictures of each class.
        shares: share of each split; they add up to 1.
        seed: seed of the order.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, dict[str, list[Path]]] = {name: {} for name in shares}
    for label, paths in files.items():
        order = rng.permutation(len(paths))
        ends = np.rint(np.cumsum(list(shares.values())) * len(paths)).astype(int)
        for name, rows in zip(shares, np.split(order, ends[:-1]), strict=True):
            parts[name][label] = [paths[row] for row in rows]
    return parts


def fold(files: Files, number: int, folds: int, seed: int = 0) -> dict[str, dict[str, list[Path]]]:
    """Fold `number` of a stratified cross-validation as `train` and `val`."""
    names = [str(one) for one in range(folds)]
    parts = split(files, dict.fromkeys(names, 1 / folds), seed)
    train = {label: [path for name in names if name != names[number] for path in parts[name][label]] for label in files}
    return {"train": train, "val": parts[names[number]]}


def link(parts: Mapping[str, Files], target: Path) -> Path:
    """Make the tree `<split>/<class>/<picture>` of links, and return it."""
    for name, files in parts.items():
        for label, paths in files.items():
            folder = target / name / label
            folder.mkdir(parents=True)
            for path in paths:
                (folder / path.name).symlink_to(path)
    return target


def count(parts: Mapping[str, Files], name: str) -> int:
    """Number of pictures of a split."""
    return sum(map(len, parts[name].values()))


def given_splits(folder: Path, limit: int | None) -> dict[str, dict[str, list[Path]]]:
    """The splits train/ and val/ of a folder.

    Raises:
        SystemExit: if it has no such folders.
    """
    if not (folder / "train").is_dir() or not (folder / "val").is_dir():
        raise SystemExit(f"{folder} needs the folders train/ and val/")
    return {name: pictures(folder / name, limit) for name in ("train", "val")}

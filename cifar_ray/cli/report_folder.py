"""Where a verb leaves the files of its report."""

from __future__ import annotations

from collections.abc import Mapping

from cifar_ray.config import resolve_storage
from cifar_ray.storage import FileTree


def save_report(files: Mapping[str, bytes], chosen: str | None, storage: str, default: str) -> FileTree:
    """Writes the files of a report.

    Args:
        files: contents by file name.
        chosen: the folder that the user chose, if any.
        storage: path or URI of the storage.
        default: folder below the storage if the user chose none.

    Returns:
        The folder.

    Raises:
        StoreError: if it cannot be written.
    """
    folder = FileTree(resolve_storage(storage), default) if chosen is None else FileTree(resolve_storage(chosen), "")
    for name, content in files.items():
        folder.replace(name, content)
    return folder


def print_figures(figures: list[tuple[str, str]]) -> None:
    """Prints a line per figure, its name first."""
    for name, text in figures:
        print(f"{name:12} {text}")

"""Write the files of a verb's report, and print its figures."""

from __future__ import annotations

from collections.abc import Mapping

from cifar_ray.config import resolve_storage
from cifar_ray.storage import FileTree


def save_report(files: Mapping[str, bytes], chosen: str | None, storage: str, default: str) -> FileTree:
    """Write the files of a report.

    Args:
        files: contents by file name.
        chosen: path or URI of the folder that the user chose; `None` for the default.
        storage: path or URI of the storage.
        default: default folder, relative to the storage.

    Returns:
        The folder.

    Raises:
        StoreError: if the folder cannot be written.
    """
    folder = FileTree(resolve_storage(storage), default) if chosen is None else FileTree(resolve_storage(chosen), "")
    for name, content in files.items():
        folder.replace(name, content)
    return folder


def print_figures(figures: list[tuple[str, str]]) -> None:
    """Print one line per figure: name, then text."""
    for name, text in figures:
        print(f"{name:12} {text}")

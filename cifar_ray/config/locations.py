"""Where files are: the storage that a user names, or the default."""

from __future__ import annotations

import os
from pathlib import Path

STORAGE_VARIABLE = "CIFAR_RAY_STORAGE"


def default_storage() -> str:
    """`$CIFAR_RAY_STORAGE`, else `./storage`; not yet resolved."""
    return os.environ.get(STORAGE_VARIABLE) or "./storage"


def resolve_storage(storage: str) -> str:
    """Makes a storage location safe to hand to other processes.

    Ray workers change directory, so a relative path is resolved here, where the user typed it; a URI
    (`s3://bucket/path`) is returned unchanged.
    """
    return storage.rstrip("/") if "://" in storage else str(Path(storage).expanduser().absolute())

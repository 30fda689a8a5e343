"""Named pipes, sockets and devices: they have names like files, but reading them may block forever."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from cifar_ray.errors import ImageError

_KINDS = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it, after following links.

    Raises:
        OSError: if it is missing or cannot be read.
        ImageError: if it is not a regular file.
    """
    kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    if kind:
        raise ImageError(f"is a {kind}, not a file; copy its content to a file")
    return path.open("rb")


def special_kind(entry: os.DirEntry[str]) -> str:
    """Kind of a special file, after following links; empty for other files, and for a dangling link, which decoding reports.

    File systems list the kind together with the name, so this rarely needs a system call.
    """
    try:
        return "" if entry.is_file() else _KINDS.get(stat.S_IFMT(entry.stat().st_mode), "")
    except OSError:
        return ""

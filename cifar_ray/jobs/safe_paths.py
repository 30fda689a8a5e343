"""Which names from a client may become a path: relative ones that cannot leave a folder, however they are written."""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote

from cifar_ray.errors import ConfigError

_MAX_LENGTH = 1000


def check_relative(path: str) -> str:
    """Check a relative path with `/` between its parts.

    Percent signs are never decoded here, but a server behind a URL does so, maybe twice; and some compatible characters of Unicode, such
    as a full-width full stop, become ASCII when a file system normalises them. So all these forms are checked.

    Returns:
        The same path.

    Raises:
        ConfigError: if a part is empty, `.` or `..`, hidden, or has a backslash or a control character; or if the path is absolute.
    """
    once = unquote(path, errors="replace")
    for form in (path, once, unquote(once, errors="replace")):
        for written in (form, unicodedata.normalize("NFKC", form)):
            if _is_bad(written):
                shown = path[:100] if path.isprintable() else repr(path[:100])
                raise ConfigError(f"{shown}: expected a relative path with / between its parts, without .., hidden parts and backslashes")
    return path


def _is_bad(path: str) -> bool:
    parts = path.split("/")
    return (
        len(path) > _MAX_LENGTH
        or any(not part or part.startswith((".", "~")) for part in parts)
        or any(unicodedata.category(letter) in ("Cc", "Cs", "Cf", "Zl", "Zp") or letter == "\\" for letter in path)
        or (len(parts[0]) == 2 and parts[0][1] == ":")
    )

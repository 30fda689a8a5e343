"""Check paths that clients send: they must be relative and must not leave their folder, however they are spelled."""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote

from cifar_ray.errors import ConfigError

_MAX_LENGTH = 1000


def check_relative(path: str) -> str:
    """Check a relative path with `/` between its parts.

    This program never decodes percent signs, but a web server does, perhaps twice. Some file systems normalise compatible characters of
    Unicode, such as a full-width full stop, to ASCII. So the path is checked as it is and decoded once and twice, each also normalised.

    Returns:
        The same path.

    Raises:
        ConfigError: if a part is empty, `.`, `..` or hidden, starts with `~`, or has a backslash or control character; or if the path is
            absolute, starts with a drive letter, or has over 1,000 characters.
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

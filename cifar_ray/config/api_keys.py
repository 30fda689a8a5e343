"""Keys that let programs use a server: a text file of names, hashes and limits. The keys themselves are kept nowhere."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cifar_ray.config.base import NAME_PATTERN
from cifar_ray.errors import ConfigError

KEYS_VARIABLE = "CIFAR_RAY_API_KEYS"

UNLIMITED: Literal["unlimited"] = "unlimited"
REVOKED: Literal["revoked"] = "revoked"

_HEADING = "# keys of a cifar_ray server: name, sha256 of the key, requests a minute (or unlimited, revoked)\n"
_PREFIX = "cifar-ray-"  # so that people, and programs that look for leaked secrets, know one when they see it
_KEY_BYTES = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIMIT = re.compile(rf"[1-9][0-9]{{0,8}}|{UNLIMITED}|{REVOKED}")


@dataclass(frozen=True)
class ApiKey:
    """What a server knows of a key.

    Attributes:
        name: of whoever holds it; for people and logs.
        sha256: of the key, in hex. A key has 256 random bits, so neither salt nor a slow hash would add anything.
        limit: requests a minute, `unlimited`, or `revoked`.
    """

    name: str
    sha256: str
    limit: str

    @property
    def requests_per_minute(self) -> int | None:
        """`None` for as many as it likes."""
        return int(self.limit) if self.limit.isdecimal() else None


def new_key() -> str:
    """A key that nobody can guess."""
    return _PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def sha256_of(key: bytes) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> list[ApiKey]:
    """Reads a file of keys: a line each, `name sha256 limit`; `#` begins a comment.

    Raises:
        ConfigError: naming the file and the first line that is wrong, without showing it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); python -m cifar_ray.keys add NAME makes it") from None
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        matches = (
            len(fields) == 3 and re.fullmatch(NAME_PATTERN, fields[0]) and _SHA256.fullmatch(fields[1]) and _LIMIT.fullmatch(fields[2])
        )
        if not matches or fields[0] in keys:  # the line may hold a key by mistake, so it is not shown
            raise ConfigError(f"{path}, line {number}: expected a new name, a sha256 in hex, and a number, {UNLIMITED} or {REVOKED}")
        keys[fields[0]] = ApiKey(*fields)
    return list(keys.values())


def write_keys(path: Path, keys: Iterable[ApiKey]) -> None:
    """Writes a file of keys, for its owner alone; a server sees the old one or the new, never a part.

    Raises:
        ConfigError: if it cannot be written.
    """
    text = _HEADING + "".join(f"{key.name} {key.sha256} {key.limit}\n" for key in keys)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, staging = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(staging).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(staging).unlink()
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None

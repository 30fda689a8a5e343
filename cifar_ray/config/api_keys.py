"""API keys of a server: a text file of names, hashes and rate limits. The keys themselves are not stored."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from cifar_ray.config.base import NAME_PATTERN
from cifar_ray.errors import ConfigError

KEYS_VARIABLE = "CIFAR_RAY_API_KEYS"

UNLIMITED: Literal["unlimited"] = "unlimited"
REVOKED: Literal["revoked"] = "revoked"

# predict: classify pictures; review: also see and label captured pictures; jobs: predict, and start prediction jobs; admin: everything
Scope = Literal["predict", "review", "jobs", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_HEADING = "# keys of a cifar_ray server: name, sha256 of the key, requests a minute (or unlimited, revoked), scope (default: predict)\n"
_PREFIX = "cifar-ray-"  # so that people and secret scanners recognise a key
_KEY_BYTES = 32
_LOCK_TIMEOUT_S = 10.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIMIT = re.compile(rf"[1-9][0-9]{{0,8}}|{UNLIMITED}|{REVOKED}")


@dataclass(frozen=True)
class ApiKey:
    """Facts about a key that a server stores.

    Attributes:
        name: name of the key's holder, for people and logs.
        sha256: hash of the key, in hex. A key has 256 random bits, so neither salt nor a slow hash would improve security.
        limit: requests per minute, `unlimited`, or `revoked`.
        scope: permissions of the holder.
    """

    name: str
    sha256: str
    limit: str
    scope: Scope = "predict"

    def may(self, scope: Scope) -> bool:
        """Whether the key's scope includes `scope`: every scope includes `predict`, and `admin` includes all."""
        return self.scope in (scope, "admin") or scope == "predict"

    @property
    def requests_per_minute(self) -> int | None:
        """The rate limit; `None` if the key is unlimited or revoked."""
        return int(self.limit) if self.limit.isdecimal() else None

    @property
    def is_revoked(self) -> bool:
        """Whether servers reject the key."""
        return self.limit == REVOKED


def add_key(path: Path, name: str, requests_per_minute: int | None, scope: Scope = "predict") -> str:
    """Create a key, and add its hash to a file, which is created if it does not exist.

    Args:
        path: path of the file.
        name: name of the key's holder.
        requests_per_minute: rate limit; `None` for no limit.
        scope: permissions of the holder.

    Returns:
        The key; it cannot be read from the file later.

    Raises:
        ConfigError: if the name is in the file already, or the file cannot be read or written.
    """
    with _locked(path):
        keys = read_keys(path) if path.exists() else []
        if any(key.name == name for key in keys):
            raise ConfigError(f"{path} has a key of {name} already. Choose another name: the name of a revoked key cannot be used again")
        key = new_key()
        write_keys(path, [*keys, ApiKey(name, sha256_of(key.encode()), str(requests_per_minute or UNLIMITED), scope)])
    return key


def revoke_key(path: Path, name: str) -> None:
    """Revoke the key of a holder.

    Raises:
        ConfigError: if the holder has no key, or the file cannot be read or written.
    """
    with _locked(path):
        keys = read_keys(path)
        if all(key.name != name for key in keys):
            raise ConfigError(f"{path} has no key of {name}. Available: {', '.join(key.name for key in keys) or 'none'}")
        write_keys(path, [replace(key, limit=REVOKED) if key.name == name else key for key in keys])


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other processes that change the file; the lock is a hidden file in the same folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_TIMEOUT_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ConfigError(f"{path}: another process has been changing it for {_LOCK_TIMEOUT_S:g} s; stop that process") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def new_key() -> str:
    """A random key: the prefix `cifar-ray-` and 256 random bits in URL-safe base64."""
    return _PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def sha256_of(key: bytes) -> str:
    """The hash of a key, in hex; the file contains the hash instead of the key."""
    return hashlib.sha256(key).hexdigest()


def read_keys(path: Path) -> list[ApiKey]:
    """Read a file of keys: one key per line, `name sha256 limit`, and a scope if it is not `predict`; `#` starts a comment.

    Raises:
        ConfigError: naming the file and the number of the first wrong line, without showing the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}). Create it with: cifar-ray keys add NAME") from None
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        matches = (
            len(fields) in (3, 4) and re.fullmatch(NAME_PATTERN, fields[0]) and _SHA256.fullmatch(fields[1]) and _LIMIT.fullmatch(fields[2])
        )
        if (
            not matches or fields[0] in keys or (fields[3:] and fields[3] not in SCOPES)
        ):  # the line may contain a key by mistake, so it is not shown
            raise ConfigError(
                f"{path}, line {number}: expected a new name, a sha256 in hex, a number, {UNLIMITED} or {REVOKED}, and a scope"
            )
        keys[fields[0]] = ApiKey(*fields)  # type: ignore[arg-type]
    return list(keys.values())


def _line(key: ApiKey) -> str:
    """A line of the file; the scope `predict` is left out, so that earlier releases can read the line."""
    return f"{key.name} {key.sha256} {key.limit}{'' if key.scope == SCOPES[0] else f' {key.scope}'}\n"


def write_keys(path: Path, keys: Iterable[ApiKey]) -> None:
    """Write a file of keys that only its owner can read; the write is atomic, so a server never sees a part of the file.

    Raises:
        ConfigError: if the file cannot be written.
    """
    text = _HEADING + "".join(map(_line, keys))
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

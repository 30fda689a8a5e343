"""Locations of files: the storage that a user names, or the default storage, and the spelling of paths and URIs."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

from cifar_ray.errors import ConfigError

STORAGE_VARIABLE = "CIFAR_RAY_STORAGE"

_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
# A URI with too few slashes, or without a bucket; it would otherwise become a local folder
_HALF_A_URI = re.compile(r"(s3|gs|gcs|abfss?|hdfs|file):(?!//[^/?]|///)", re.IGNORECASE)


def default_storage() -> str:
    """`$CIFAR_RAY_STORAGE`, else `./storage`; not yet resolved."""
    return os.environ.get(STORAGE_VARIABLE) or "./storage"


def resolve_storage(storage: str) -> str:
    """Resolve a storage location, so that it means the same in other processes.

    Ray workers change directory, so a relative path is resolved here, in the working directory of the user. A URI
    (`s3://bucket/path`) only loses slashes at its end.

    Raises:
        ConfigError: if the location is empty, not UTF-8, an incomplete URI, or in the home folder of an unknown user.
    """
    if not storage.strip():
        raise ConfigError("a path or URI is empty; leave the flag out for its default")
    if not _is_text(storage):
        raise ConfigError(f"{printable(storage)}: the path is not valid UTF-8; rename it, or make a link to it: ln -s PATH NEW-NAME")
    if _HALF_A_URI.match(storage):
        raise ConfigError(f"{storage}: expected a path, or a URI such as s3://bucket/folder")
    if "://" in storage:
        return storage.rstrip("/")
    place = str(local_path(storage).absolute())
    if not _is_text(place):
        raise ConfigError(f"{printable(place)}: the path of this folder is not valid UTF-8; work in another folder")
    return place


def split_address(address: str) -> tuple[str, str, str]:
    """Split the address of a folder in an object store or on a web server.

    Returns:
        The address as clients write it, without secrets and options; the address with secrets; and the options, such as `?region=…`.

    Raises:
        ValueError: if it is not such an address.
    """
    split = urlsplit(address)
    host = split.netloc.rpartition("@")[2]
    is_web = split.scheme in ("http", "https")
    is_known = is_web or split.scheme in ("s3", "gs")
    if not is_known or not _HOST.fullmatch(host) or split.fragment or "%" in split.path:
        raise ValueError("expected s3://bucket/folder, gs://bucket/folder or https://host/folder, with commas between them")
    if is_web and split.query:
        raise ValueError("the address of a web server has no ?")
    path = split.path.rstrip("/")
    return f"{split.scheme}://{host}{path}", f"{split.scheme}://{split.netloc}{path}", f"?{split.query}" if split.query else ""


def _is_text(path: str) -> bool:
    """Whether a path can be encoded in UTF-8, which files and messages to other processes need."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def storage_flag(storage: str) -> str:
    """` --storage PATH` for a command that the user may type next; empty for the default storage."""
    return "" if resolve_storage(storage) == resolve_storage(default_storage()) else f" --storage {shlex.quote(storage)}"


def printable(name: str | bytes | Path) -> str:
    """A file name as text. Bytes that are not UTF-8, as in old archives, are escaped, because reports and tables hold only UTF-8."""
    raw = name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def local_path(path: str) -> Path:
    """A path as the user typed it, with `~` and `~name` replaced by home folders, because shells do not replace them in `--flag=~/x`.

    Raises:
        ConfigError: if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: no user of this name on this machine; for a folder called so: ./{path}") from None

"""The audit log: who promoted, staged or deleted a model or changed API keys, when and why. Entries are added, never changed."""

from __future__ import annotations

import getpass
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cifar_ray.storage import FileTree

Action = Literal["promote", "rollback", "delete", "stage", "unstage", "withdraw", "add key", "revoke key"]

_SUFFIX = ".json"


class Entry(BaseModel):
    """One entry of the log.

    Attributes:
        at: time of the change, in UTC.
        who: user and host, as `user@host`.
        action: what was done.
        subject: what was changed, for example `photos@7`, or the name of a key.
        why: the reason, as a clause; empty if the user gave none.
        figures: figures on which the decision was based, by name, as text.
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    who: str
    action: Action
    subject: str
    why: str = ""
    figures: dict[str, str] = {}


@dataclass(frozen=True)
class Reason:
    """Action, reason and figures of a log entry; the attributes are those of `Entry`."""

    action: Action
    why: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)


class Log:
    """The entries at `<storage>/log/`, one file each, because an object store cannot append to a file.

    Args:
        storage: path or URI.
        timeout_s: as for `FileTree`.

    Raises:
        StoreError: from every method, if the storage refuses the operation or cannot be reached.
    """

    def __init__(self, storage: str, timeout_s: float | None = None) -> None:
        self._files = FileTree(storage, "log", timeout_s)

    def add(self, subject: str, reason: Reason) -> None:
        """Write an entry with the current time and user."""
        now = datetime.now(UTC)
        entry = Entry(at=now, who=_who(), action=reason.action, subject=subject, why=reason.why, figures=dict(reason.figures))
        # File names sort by time. The random part distinguishes entries of the same millisecond.
        name = f"{int(now.timestamp() * 1000):013d}-{secrets.token_hex(4)}{_SUFFIX}"
        self._files.replace(name, entry.model_dump_json(indent=2).encode())

    def entries(self, last: int | None = None) -> list[Entry]:
        """The entries, the oldest first; damaged ones are left out.

        Args:
            last: number of the newest entries to return; `None` for all.
        """
        names = [name for name in self._files.files(allow_not_found=True) if name.endswith(_SUFFIX) and "/" not in name]
        found = (_decode(self._files.read(name)) for name in names[-last if last else 0 :])
        return [entry for entry in found if entry is not None]


def _decode(data: bytes | None) -> Entry | None:
    try:
        return None if data is None else Entry.model_validate_json(data)
    except ValidationError:
        return None


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"

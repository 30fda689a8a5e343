"""The file `aliases.json` of a model: which version is in production, which was before, and which are deleted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, ValidationError

from cifar_ray.config.documents import without_format
from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree

PRODUCTION = "production"
PREVIOUS = "previous"

_FILE = "aliases.json"
_FORMAT_VERSION = 1
# Release 0.1 accepts only integers as values in this file
_PROMOTED_AT = "promoted_at_ms"  # milliseconds since 1970
_DELETED = "deleted_"  # followed by the version
_FIELDS = TypeAdapter(dict[str, Annotated[int, Field(ge=1)]])


@dataclass(frozen=True)
class Aliases:
    """Content of the file.

    Attributes:
        versions: version by alias.
        promoted_at_ms: time of the last promotion, in milliseconds since 1970; `None` without a promotion, or if release 0.1 promoted.
        deleted: versions whose deletion has started; they cannot be promoted.
    """

    versions: Mapping[str, int]
    promoted_at_ms: int | None = None
    deleted: frozenset[int] = frozenset()

    @property
    def production(self) -> int | None:
        """The production version, if there is one."""
        return self.versions.get(PRODUCTION)

    @property
    def previous(self) -> int | None:
        """The version that was in production before, if there is one."""
        return self.versions.get(PREVIOUS)

    def with_production(self, version: int) -> Self:
        """A copy with another version in production, promoted now; the current production version becomes `previous`."""
        present = self.versions.get(PRODUCTION, version)
        previous = {PREVIOUS: present} if present != version else {}
        return replace(self, versions=dict(self.versions) | {PRODUCTION: version} | previous, promoted_at_ms=_now_ms())

    def without(self, version: int) -> Self:
        """A copy with a version marked as deleted, and without aliases that point to it."""
        rest = {alias: target for alias, target in self.versions.items() if target != version}
        return replace(self, versions=rest, deleted=self.deleted | {version})


def read_aliases(files: FileTree, name: str) -> Aliases:
    """Read the file of a model; a model without one has no aliases.

    Raises:
        StoreError: if the file is damaged.
    """
    return _decode(files.read(f"{name}/{_FILE}"), files.path(f"{name}/{_FILE}"), name)


def change_aliases(files: FileTree, name: str, change: Callable[[Aliases], Aliases]) -> Aliases:
    """Replace the aliases of a model by `change(aliases)`; no other change happens in between.

    Returns:
        The new aliases.

    Raises:
        StoreError: if the file is damaged, or cannot be written.
    """
    where = files.path(f"{name}/{_FILE}")
    written = files.update(f"{name}/{_FILE}", lambda data: _encode(change(_decode(data, where, name))))
    return _decode(written, where, name)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _decode(data: bytes | None, where: str, name: str) -> Aliases:
    try:
        values = {} if data is None else _FIELDS.validate_json(data)
    except ValidationError:
        raise StoreError(f"{where} is damaged; delete this file, then promote a version of {name}") from None
    fields = without_format(values, where, _FORMAT_VERSION)
    promoted_at_ms = fields.pop(_PROMOTED_AT, None)
    deleted = {key: fields.pop(key) for key in list(fields) if key.startswith(_DELETED)}
    return Aliases(fields, promoted_at_ms, frozenset(deleted.values()))


def _encode(aliases: Aliases) -> bytes:
    head = {"format_version": _FORMAT_VERSION} | ({_PROMOTED_AT: aliases.promoted_at_ms} if aliases.promoted_at_ms else {})
    deleted = {f"{_DELETED}{version}": version for version in sorted(aliases.deleted)}
    return _FIELDS.dump_json(head | dict(aliases.versions) | deleted, indent=2)

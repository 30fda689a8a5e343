"""The model store: bundles by name and version, and aliases such as `production`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from cifar_ray.config import NAME_PATTERN, resolve_storage
from cifar_ray.errors import ConcurrentChangeError, StoreError, UnknownModelError
from cifar_ray.storage import NUMBER, FileTree
from cifar_ray.store.aliases import PRODUCTION, Aliases, change_aliases, read_aliases
from cifar_ray.store.bundle import MANIFEST_FILE, WEIGHTS_FILE, Bundle, check, decode, decode_manifest, decode_weights, encode
from cifar_ray.store.log import Log, Reason
from cifar_ray.store.manifest import Manifest
from cifar_ray.store.publishing import cards_of_new

if TYPE_CHECKING:
    import torch

LATEST = "latest"
TEST_ACCURACY = "test_accuracy"
TEST_MAP = "test_map"

_BY_HAND = Reason("promote")


class ModelStore:
    """The bundles at `<storage>/models/<name>/<version>/`, on a local path or any URI that pyarrow supports.

    A reference is `name` (production, else the newest), `name@3`, `name@latest` or `name@ALIAS`. A version never changes, and its
    number is never reused. So a model is unchanged as long as `resolve` returns the same version.

    Args:
        storage: path or URI; the first `save` creates it.
        timeout_s: as for `FileTree`.

    Attributes:
        storage: the absolute path or URI.
        location: path of the models in the file system, for messages: a URI may contain credentials.
        log: the audit log of promotions, rollbacks and deletions.

    Raises:
        StoreError: from every method, if the storage refuses the operation or cannot be reached.
    """

    def __init__(self, storage: str, timeout_s: float | None = None) -> None:
        self.storage = resolve_storage(storage)
        self._files = FileTree(self.storage, "models", timeout_s)
        self.location = self._files.path()
        self.log = Log(self.storage, timeout_s)

    def save(
        self, name: str, manifest: Manifest, weights: Mapping[str, torch.Tensor], attachments: Mapping[str, bytes] | None = None
    ) -> Bundle:
        """Save a model as the next version of `name`. A crash at any point leaves nothing that looks like a model.

        Args:
            name: letters, digits, `.`, `_` and `-`.
            manifest: `save` sets its `weights_sha256` and `attachments`.
            weights: a state dict; any device, memory format and sharing.
            attachments: additional files of the bundle, by name.

        Returns:
            The bundle as a reader loads it.

        Raises:
            StoreError: if the name is not allowed.
        """
        _check_name(name)
        files = encode(manifest, weights, attachments or {})
        as_read = decode_manifest(files[MANIFEST_FILE], name)
        weights_as_read = decode_weights(files[WEIGHTS_FILE], as_read, name)
        # The manifest is written last and commits the bundle: readers ignore a folder without one.
        version = self._files.add_numbered(name, cards_of_new(name, as_read, weights_as_read) | files)
        return Bundle(as_read, weights_as_read, name, version, attachments or {})

    def load(self, reference: str) -> Bundle:
        """Read a bundle; check the weights against the manifest before parsing them.

        Raises:
            StoreError: if the model is not in the store; the message lists the available ones.
            BundleError: if the bundle is damaged; the message names the first problem.
        """
        name, version = self.resolve(reference)
        manifest = self._read_manifest(name, version)
        return decode(manifest, partial(self._read, name, version), self._where(name, version), name, version)

    def manifest(self, reference: str) -> Manifest:
        """Read a manifest and check that the weights file exists; cheap enough for a call every few seconds.

        Raises:
            StoreError: if the model is not in the store.
            BundleError: if the manifest is damaged or the weights are missing.
        """
        name, version = self.resolve(reference)
        return self._read_manifest(name, version)

    def check(self, reference: str) -> Manifest:
        """Read and check all files of a bundle, without loading the model. Raises as `load`."""
        name, version = self.resolve(reference)
        manifest = self._read_manifest(name, version)
        for file, sha256 in {WEIGHTS_FILE: manifest.weights_sha256, **manifest.attachments}.items():
            check(self._read(name, version, file), file, sha256, self._where(name, version))
        return manifest

    def attachment(self, reference: str, file: str) -> bytes | None:
        """Read and check one attachment of a bundle; `None` if the bundle does not have it."""
        name, version = self.resolve(reference)
        sha256 = self._read_manifest(name, version).attachments.get(file)
        return check(self._read(name, version, file), file, sha256, self._where(name, version)) if sha256 else None

    def resolve(self, reference: str) -> tuple[str, int]:
        """Resolve a reference to a name and version; the cheapest way to notice a change.

        Raises:
            UnknownModelError: if the reference is malformed or the model is not in the store.
        """
        name, at, selector = reference.partition("@")
        _check_name(name)
        version: int | None
        if NUMBER.fullmatch(selector):
            version = int(selector)
        else:
            aliases = read_aliases(self._files, name).versions
            selector = selector if at else PRODUCTION if PRODUCTION in aliases else LATEST
            version = self.versions(name)[-1] if selector == LATEST else aliases.get(selector)
        if version is None or not self._has(name, version, MANIFEST_FILE):
            raise UnknownModelError(f"model {name}@{selector} not found in {self.location}. Available for {name}: {self._choices(name)}")
        return name, version

    def resolve_exact(self, reference: str) -> tuple[str, int]:
        """Resolve a reference that must contain a version, because a change needs an explicit one."""
        if "@" not in reference:
            _check_name(reference)
            raise StoreError(
                f"{reference}: add a version, as in {reference}@{self.versions(reference)[-1]}. Available: {self._choices(reference)}"
            )
        return self.resolve(reference)

    def names(self) -> list[str]:
        """Names of all models that have a version, sorted."""
        return [name for name in self._files.folders() if re.fullmatch(NAME_PATTERN, name) and self._committed(name)]

    def versions(self, name: str) -> list[int]:
        """The versions of a model, ascending, never empty.

        Raises:
            UnknownModelError: if the model is not in the store; the message lists the available ones.
        """
        _check_name(name)
        versions = self._committed(name)
        if not versions:
            available = ", ".join(self.names())
            advice = f"Available: {available}" if available else "The store is empty; train a model with: cifar-ray train"
            raise UnknownModelError(f"model {name} not found in {self.location}. {advice}")
        return versions

    def aliases(self, name: str) -> dict[str, int]:
        """Versions by alias, for example `production` and `previous`. Raises as `pointers`."""
        return dict(self.pointers(name).versions)

    def pointers(self, name: str) -> Aliases:
        """Aliases, time of the last promotion, and deleted versions.

        Raises:
            StoreError: if the model is not in the store.
        """
        self.versions(name)
        return read_aliases(self._files, name)

    def promote(self, name: str, version: int, *, replacing: Aliases | None = None, reason: Reason = _BY_HAND) -> dict[str, int]:
        """Make a version `production` and the former one `previous`, in one atomic write, and log it.

        Args:
            name: name of the model.
            version: an intact version.
            replacing: the aliases on which you based the decision; default: the current aliases.
            reason: for the log.

        Returns:
            The new aliases. Promoting the production version changes only the time of the last promotion.

        Raises:
            StoreError: if the version does not exist.
            BundleError: if the bundle is damaged; it never replaces an intact one.
            ConcurrentChangeError: if another process changes the production version meanwhile.
        """
        seen = replacing or self.pointers(name)
        self.check(f"{name}@{version}")

        def promoted(present: Aliases) -> Aliases:
            self._check_unchanged(name, seen, present)
            if version in present.deleted:
                raise UnknownModelError(f"{name}@{version} was deleted. Available: {self._choices(name)}")
            return present.with_production(version)

        versions = dict(change_aliases(self._files, name, promoted).versions)
        self.log.add(f"{name}@{version}", reason)
        return versions

    def rollback(self, name: str) -> dict[str, int]:
        """Swap `production` and `previous`; a second call swaps them back. This counts as a promotion.

        Returns:
            The new aliases.

        Raises:
            StoreError: if there is no previous version.
            BundleError: if the previous version is damaged.
            ConcurrentChangeError: if another process changes the production version meanwhile.
        """
        seen = self.pointers(name)
        if seen.previous is None or seen.production is None:
            raise StoreError(f"{name} has no previous production version. Promote a version instead; available: {self._choices(name)}")
        return self.promote(name, seen.previous, replacing=seen, reason=Reason("rollback"))

    def promoted_at(self, name: str) -> datetime | None:
        """Time of the last promotion; `None` without a production version. If release 0.1, which stored no time, promoted: `created_at`.

        Raises:
            StoreError: if the model is not in the store.
            BundleError: if release 0.1 promoted the version and its manifest is damaged.
        """
        aliases = self.pointers(name)
        if aliases.production is None:
            return None
        at_ms = aliases.promoted_at_ms
        return datetime.fromtimestamp(at_ms / 1000, UTC) if at_ms else self.manifest(f"{name}@{PRODUCTION}").created_at

    def delete(self, reference: str, *, force: bool = False) -> tuple[str, int]:
        """Delete one version permanently; its number is not reused.

        Args:
            reference: a reference with a version; a bare name is refused.
            force: also delete a version that an alias points to, and the alias.

        Raises:
            StoreError: if the version does not exist, or an alias points to it and `force` is false.
        """
        name, version = self.resolve_exact(reference)

        def deleted(present: Aliases) -> Aliases:
            pointing = [alias for alias, target in present.versions.items() if target == version]
            if pointing and not force:
                raise StoreError(
                    f"{name}@{version} has the alias {' and '.join(pointing)}; promote another version first, or delete it with --force"
                )
            return present.without(version)

        # The aliases change first, so that nobody can promote the version while its files are deleted.
        change_aliases(self._files, name, deleted)
        self._files.clear_folder(f"{name}/{version}", first=MANIFEST_FILE)
        self.log.add(f"{name}@{version}", Reason("delete"))
        return name, version

    def _has(self, name: str, version: int, file: str) -> bool:
        return self._files.have_files([f"{name}/{version}/{file}"]) == [True]

    def _committed(self, name: str) -> list[int]:
        numbers = self._files.numbers(name)
        committed = self._files.have_files([f"{name}/{number}/{MANIFEST_FILE}" for number in numbers])
        return [number for number, is_committed in zip(numbers, committed, strict=True) if is_committed]

    def _choices(self, name: str) -> str:
        versions = self.versions(name)
        aliases = [alias for alias, version in read_aliases(self._files, name).versions.items() if version in versions]
        return ", ".join([*map(str, versions), *aliases, LATEST])

    def _read_manifest(self, name: str, version: int) -> Manifest:
        data = self._files.read(f"{name}/{version}/{MANIFEST_FILE}")
        if data is None:
            raise StoreError(f"{self._where(name, version)} was deleted during reading")
        manifest = decode_manifest(data, self._where(name, version))
        if not self._has(name, version, WEIGHTS_FILE):
            check(None, WEIGHTS_FILE, manifest.weights_sha256, self._where(name, version))
        return manifest

    def _read(self, name: str, version: int, file: str) -> bytes | None:
        return self._files.read(f"{name}/{version}/{file}")

    def _check_unchanged(self, name: str, seen: Aliases, present: Aliases) -> None:
        if present.production != seen.production:
            before, now = (f"{name}@{one.production}" if one.production else "none" for one in (seen, present))
            raise ConcurrentChangeError(
                f"the production version of {name} was changed from {before} to {now} by another process meanwhile; nothing was done. "
                "Look at both with: cifar-ray store list; then try again"
            )

    def _where(self, name: str, version: int) -> str:
        return f"bundle {name}@{version} in {self.location}"


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise UnknownModelError(
            f"{name!r} is not a valid model name; use 1–100 letters, digits, '.', '_' and '-', starting with a letter or digit"
        )

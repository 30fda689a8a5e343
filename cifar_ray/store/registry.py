"""The model store: bundles by name and version, and the aliases that say which one serves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, TypeAdapter, ValidationError

from cifar_ray.config import NAME_PATTERN, resolve_storage
from cifar_ray.config.documents import without_format
from cifar_ray.errors import StoreError, UnknownModelError
from cifar_ray.storage import NUMBER, FileTree
from cifar_ray.store.bundle import MANIFEST_FILE, WEIGHTS_FILE, Bundle, check, decode, decode_manifest, decode_weights, encode
from cifar_ray.store.manifest import Manifest

if TYPE_CHECKING:
    import torch

PRODUCTION = "production"
PREVIOUS = "previous"
LATEST = "latest"
TEST_ACCURACY = "test_accuracy"

_ALIASES_FILE = "aliases.json"
_ALIASES_FORMAT_VERSION = 1
_ALIASES = TypeAdapter(dict[str, Annotated[int, Field(ge=1)]])


class ModelStore:
    """Bundles at `<storage>/models/<name>/<version>/`, on a local path or any URI that pyarrow knows.

    A reference is `name` (production, else the newest), `name@3`, `name@latest` or `name@ALIAS`. A version never changes, and its number
    is never reused, so while `resolve` returns the same, nothing has changed.

    Args:
        storage: path or URI; nothing is created there before the first `save`.
        timeout_s: as `FileTree` says.

    Attributes:
        storage: the same, absolute.
        location: of the models, as the file system names it: fit to print, a URI may hold credentials.

    Raises:
        StoreError: from every method, when the storage refuses or cannot be reached.
    """

    def __init__(self, storage: str, timeout_s: float | None = None) -> None:
        self.storage = resolve_storage(storage)
        self._files = FileTree(self.storage, "models", timeout_s)
        self.location = self._files.path()

    def save(
        self, name: str, manifest: Manifest, weights: Mapping[str, torch.Tensor], attachments: Mapping[str, bytes] | None = None
    ) -> Bundle:
        """Keeps a model as the next version of `name`. A crash at any point leaves nothing that looks like a model.

        Args:
            name: letters, digits, `.`, `_` and `-`.
            manifest: its `weights_sha256` and `attachments` are filled in.
            weights: a state dict; any device, memory format and sharing.
            attachments: further files to keep beside the weights, by name.

        Returns:
            The bundle as a reader gets it.

        Raises:
            StoreError: if the name is not allowed.
        """
        _check_name(name)
        files = encode(manifest, weights, attachments or {})
        as_read = decode_manifest(files[MANIFEST_FILE], name)
        weights_as_read = decode_weights(files[WEIGHTS_FILE], as_read, name)
        # A bundle is committed by its manifest, written last: readers ignore a folder without one.
        version = self._files.add_numbered(name, files)
        return Bundle(as_read, weights_as_read, name, version, attachments or {})

    def load(self, reference: str) -> Bundle:
        """Reads a bundle; the weights are checked against the manifest before they are parsed.

        Raises:
            StoreError: if there is no such model, listing what there is.
            BundleError: if the bundle is damaged, naming the first thing wrong.
        """
        name, version = self.resolve(reference)
        manifest = self._read_manifest(name, version)
        return decode(manifest, partial(self._read, name, version), self._where(name, version), name, version)

    def manifest(self, reference: str) -> Manifest:
        """Reads a manifest and sees that there are weights beside it; cheap enough to ask every few seconds.

        Raises:
            StoreError: if there is no such model.
            BundleError: if the manifest is damaged or the weights are missing.
        """
        name, version = self.resolve(reference)
        return self._read_manifest(name, version)

    def check(self, reference: str) -> Manifest:
        """Reads all of a bundle and checks it, without loading it.

        Raises:
            StoreError: if there is no such model.
            BundleError: if the bundle is damaged.
        """
        name, version = self.resolve(reference)
        manifest = self._read_manifest(name, version)
        for file, sha256 in {WEIGHTS_FILE: manifest.weights_sha256, **manifest.attachments}.items():
            check(self._read(name, version, file), file, sha256, self._where(name, version))
        return manifest

    def attachment(self, reference: str, file: str) -> bytes | None:
        """Reads one further file of a bundle, checked as `check` does; `None` if the bundle has no such file."""
        name, version = self.resolve(reference)
        sha256 = self._read_manifest(name, version).attachments.get(file)
        return check(self._read(name, version, file), file, sha256, self._where(name, version)) if sha256 else None

    def resolve(self, reference: str) -> tuple[str, int]:
        """Which name and version a reference means now; the cheapest way to see that something changed.

        Raises:
            UnknownModelError: if the reference is malformed or there is no such model.
        """
        name, at, selector = reference.partition("@")
        _check_name(name)
        version: int | None
        if NUMBER.fullmatch(selector):
            version = int(selector)
        else:
            aliases = self._read_aliases(name)
            selector = selector if at else PRODUCTION if PRODUCTION in aliases else LATEST
            version = self.versions(name)[-1] if selector == LATEST else aliases.get(selector)
        if version is None or not self._has(name, version, MANIFEST_FILE):
            raise UnknownModelError(f"no {name}@{selector} in {self.location}; of {name} there is: {self._choices(name)}")
        return name, version

    def resolve_exact(self, reference: str) -> tuple[str, int]:
        """As `resolve`, for changes: a bare name is refused, because it does not say which version is meant."""
        if "@" not in reference:
            _check_name(reference)
            raise StoreError(f"say which version: {reference}@ and one of {self._choices(reference)}")
        return self.resolve(reference)

    def names(self) -> list[str]:
        """All models that have a version, sorted."""
        return [name for name in self._files.folders() if re.fullmatch(NAME_PATTERN, name) and self._committed(name)]

    def versions(self, name: str) -> list[int]:
        """The versions of a model, ascending, never empty.

        Raises:
            UnknownModelError: if there is no such model, listing those there are.
        """
        _check_name(name)
        versions = self._committed(name)
        if not versions:
            there_is = ", ".join(self.names())
            advice = f"there is: {there_is}" if there_is else "there is none yet; train one with: python -m cifar_ray.train"
            raise UnknownModelError(f"no model {name} in {self.location}; {advice}")
        return versions

    def aliases(self, name: str) -> dict[str, int]:
        """Versions by alias, e.g. `production` and `previous`.

        Raises:
            StoreError: if there is no such model.
        """
        self.versions(name)
        return self._read_aliases(name)

    def promote(self, name: str, version: int) -> dict[str, int]:
        """Makes a version `production`, and the one that was it `previous`, in one atomic write; of two at once the later wins.

        Returns:
            The aliases from now on. Promoting what is production already changes nothing.

        Raises:
            StoreError: if there is no such version.
            BundleError: if the bundle is damaged: it never replaces a good one.
        """
        self.check(f"{name}@{version}")
        aliases = self._read_aliases(name)
        present = aliases.get(PRODUCTION)
        if present == version:
            return aliases
        changed = aliases | {PRODUCTION: version} | ({PREVIOUS: present} if present else {})
        return self._write_aliases(name, changed)

    def rollback(self, name: str) -> dict[str, int]:
        """Exchanges `production` and `previous`; a second call takes it back.

        Returns:
            The aliases from now on.

        Raises:
            StoreError: if there is no previous version.
            BundleError: if the previous version is damaged.
        """
        aliases = self.aliases(name)
        if PREVIOUS not in aliases or PRODUCTION not in aliases:
            raise StoreError(f"{name} has no previous production version to go back to; promote one of {self._choices(name)}")
        self.check(f"{name}@{PREVIOUS}")
        return self._write_aliases(name, aliases | {PRODUCTION: aliases[PREVIOUS], PREVIOUS: aliases[PRODUCTION]})

    def delete(self, reference: str, *, force: bool = False) -> tuple[str, int]:
        """Deletes one version for good; its number is not given again.

        Args:
            reference: must say which version; a bare name is refused.
            force: delete a version that an alias points to, and the alias with it.

        Raises:
            StoreError: if there is no such version, or an alias points to it and `force` is not given.
        """
        name, version = self.resolve_exact(reference)
        aliases = self._read_aliases(name)
        pointing = [alias for alias, target in aliases.items() if target == version]
        if pointing and not force:
            raise StoreError(f"{name}@{version} is {' and '.join(pointing)}; promote another version first, or delete it with --force")
        if pointing:
            self._write_aliases(name, {alias: target for alias, target in aliases.items() if target != version})
        self._files.clear_folder(f"{name}/{version}", first=MANIFEST_FILE)
        return name, version

    def _has(self, name: str, version: int, file: str) -> bool:
        return self._files.have_files([f"{name}/{version}/{file}"]) == [True]

    def _committed(self, name: str) -> list[int]:
        numbers = self._files.numbers(name)
        committed = self._files.have_files([f"{name}/{number}/{MANIFEST_FILE}" for number in numbers])
        return [number for number, is_committed in zip(numbers, committed, strict=True) if is_committed]

    def _choices(self, name: str) -> str:
        versions = self.versions(name)
        aliases = [alias for alias, version in self._read_aliases(name).items() if version in versions]
        return ", ".join([*map(str, versions), *aliases, LATEST])

    def _read_manifest(self, name: str, version: int) -> Manifest:
        data = self._files.read(f"{name}/{version}/{MANIFEST_FILE}")
        if data is None:
            raise StoreError(f"{self._where(name, version)} was deleted while it was read")
        manifest = decode_manifest(data, self._where(name, version))
        if not self._has(name, version, WEIGHTS_FILE):
            check(None, WEIGHTS_FILE, manifest.weights_sha256, self._where(name, version))
        return manifest

    def _read(self, name: str, version: int, file: str) -> bytes | None:
        return self._files.read(f"{name}/{version}/{file}")

    def _read_aliases(self, name: str) -> dict[str, int]:
        data, where = self._files.read(f"{name}/{_ALIASES_FILE}"), self._files.path(f"{name}/{_ALIASES_FILE}")
        try:
            values = {} if data is None else _ALIASES.validate_json(data)
        except ValidationError:
            raise StoreError(f"{where} is damaged; remove it, then promote a version of {name}") from None
        return without_format(values, where, _ALIASES_FORMAT_VERSION)

    def _write_aliases(self, name: str, aliases: dict[str, int]) -> dict[str, int]:
        self._files.replace(f"{name}/{_ALIASES_FILE}", _ALIASES.dump_json({"format_version": _ALIASES_FORMAT_VERSION} | aliases, indent=2))
        return aliases

    def _where(self, name: str, version: int) -> str:
        return f"bundle {name}@{version} in {self.location}"


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise UnknownModelError(
            f"{name!r} is not a model name: letters, digits, '.', '_' and '-', at most 100, the first a letter or digit"
        )

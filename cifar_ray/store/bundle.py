"""A model bundle: weights as safetensors, never pickle, and a manifest with their checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError
from safetensors import SafetensorError

from cifar_ray.errors import BundleError
from cifar_ray.store.manifest import FORMAT_VERSION, Manifest

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"

_ADVICE = "restore it or delete this version"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model as the store holds it, immutable under its name and version.

    Attributes:
        manifest: everything but the weights.
        weights: a state dict: tensors by name, on the CPU, contiguous, each with its own memory.
        name: name of the model.
        version: number of the version, from 1.
        attachments: additional files, by name.
    """

    manifest: Manifest
    weights: dict[str, torch.Tensor]
    name: str
    version: int
    attachments: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """`name@version`, the reference of this bundle."""
        return f"{self.name}@{self.version}"


def encode(manifest: Manifest, weights: Mapping[str, torch.Tensor], attachments: Mapping[str, bytes]) -> dict[str, bytes]:
    """Encode a bundle as files; the manifest comes last and contains the sha256 of the others.

    Args:
        manifest: `encode` sets its `weights_sha256` and `attachments`.
        weights: any device, memory format and sharing; values and dtypes stay the same bit for bit.
        attachments: additional files, by name.
    """
    import torch  # this import takes seconds, and listing and promoting do not need it
    from safetensors.torch import save

    # safetensors supports neither strided nor shared memory (tied layers, views)
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    data = save(tensors)
    signed = manifest.model_copy(
        update={"weights_sha256": _sha256(data), "attachments": {name: _sha256(content) for name, content in attachments.items()}}
    )
    # older releases refuse unknown keys
    unknown = {"task", "label_rules"} if manifest.task == "single-label" else set()
    unknown |= set() if manifest.class_descriptions else {"class_descriptions"}
    return {WEIGHTS_FILE: data, **attachments, MANIFEST_FILE: signed.model_dump_json(indent=2, exclude=unknown).encode()}


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Parse `manifest.json`.

    Args:
        data: the file's content.
        where: the bundle, for the message.

    Raises:
        BundleError: if it is invalid; the message names the first problem.
    """
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{where}: {MANIFEST_FILE}: {_first_mistake(error)}") from None
    if not manifest.weights_sha256:
        raise BundleError(f"{where}: {MANIFEST_FILE}: weights_sha256 is empty, so the weights cannot be checked; {_ADVICE}")
    return manifest


def check(data: bytes | None, file: str, sha256: str, where: str) -> bytes:
    """Check a file of a bundle against the manifest's checksum, without parsing the file; returns its content.

    Args:
        data: content of the file; `None` if it does not exist.
        file: name of the file.
        sha256: checksum of the file in the manifest.
        where: the bundle, for the message.

    Raises:
        BundleError: if the file is missing or its checksum differs.
    """
    if data is None:
        raise BundleError(f"{where}: {file} is missing; {_ADVICE}")
    if _sha256(data) != sha256:
        raise BundleError(f"{where}: {file} ({len(data):,} bytes) is damaged: its sha256 differs from the manifest; {_ADVICE}")
    return data


def decode(manifest: Manifest, read: Callable[[str], bytes | None], where: str, name: str, version: int) -> Bundle:
    """Read the files of a bundle; check each against the manifest before parsing it.

    Args:
        manifest: manifest of the bundle.
        read: returns the content of a file by its name; `None` if it does not exist.
        where: the bundle, for messages.
        name: name of the model.
        version: version of the model.

    Raises:
        BundleError: if a file is missing, its checksum differs, or the weights are not safetensors.
    """
    weights = decode_weights(read(WEIGHTS_FILE), manifest, where)
    attachments = {file: check(read(file), file, sha256, where) for file, sha256 in manifest.attachments.items()}
    return Bundle(manifest, weights, name, version, attachments)


def decode_weights(data: bytes | None, manifest: Manifest, where: str) -> dict[str, torch.Tensor]:
    """Check and parse `model.safetensors`: tensors by name, on the CPU.

    Raises:
        BundleError: if it is missing, its checksum differs, or it is not safetensors.
    """
    from safetensors.torch import load

    try:
        return load(check(data, WEIGHTS_FILE, manifest.weights_sha256, where))
    except SafetensorError as error:
        raise BundleError(f"{where}: {WEIGHTS_FILE} is not a safetensors file ({error}); other formats are not supported") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _first_mistake(error: ValidationError) -> str:
    mistakes = error.errors(include_url=False)
    if any(mistake["loc"] == ("format_version",) for mistake in mistakes):
        return f"this release reads only format_version {FORMAT_VERSION}; upgrade cifar-ray"
    field = ".".join(str(part) for part in mistakes[0]["loc"])
    message = "unknown key" if mistakes[0]["type"] == "extra_forbidden" else mistakes[0]["msg"]
    return f"{field}: {message}; {_ADVICE}" if field else f"{message}; {_ADVICE}"

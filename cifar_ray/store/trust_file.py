"""Calibration and abstention of a bundle: fields of the manifest, and an attachment with features of known pictures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from cifar_ray.errors import BundleError
from cifar_ray.metrics.familiarity import Familiarity
from cifar_ray.metrics.trust import Trust

if TYPE_CHECKING:
    from cifar_ray.store.bundle import Bundle

FAMILIARITY_FILE = "familiarity.safetensors"


def encode_familiarity(trust: Trust) -> dict[str, bytes]:
    """The attachment by its file name; empty if the energy alone decides when to abstain."""
    from safetensors.numpy import save

    return {} if trust.familiarity is None else {FAMILIARITY_FILE: save(trust.familiarity.arrays())}


def with_trust(bundle: Bundle, trust: Trust) -> Bundle:
    """A copy of a bundle, not saved yet, with another calibration and other rules for abstaining."""
    changes = {"temperature": trust.temperature, "abstain_threshold": trust.abstain_threshold, "label_rules": trust.rules}
    others = {name: data for name, data in bundle.attachments.items() if name != FAMILIARITY_FILE}
    manifest = bundle.manifest.model_copy(update=changes)
    return dataclasses.replace(bundle, manifest=manifest, attachments=others | encode_familiarity(trust))


def read_trust(bundle: Bundle) -> Trust:
    """Read what `with_trust` wrote; bundles of older releases, which lack the attachment, abstain by the energy.

    Raises:
        BundleError: if the attachment is damaged.
    """
    from safetensors.numpy import load

    manifest, data = bundle.manifest, bundle.attachments.get(FAMILIARITY_FILE)
    try:
        familiarity = None if data is None else Familiarity.of_arrays(load(data))
    except (KeyError, ValueError, SafetensorError) as error:
        raise BundleError(f"{bundle.reference}: {FAMILIARITY_FILE} cannot be read ({error}); calibrate the model again") from None
    return Trust(manifest.temperature, manifest.abstain_threshold, familiarity, manifest.rules)

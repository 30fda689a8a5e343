"""Decides whether a new version becomes the production version."""

from __future__ import annotations

from cifar_ray.errors import BundleError
from cifar_ray.store.bundle import Bundle
from cifar_ray.store.registry import PRODUCTION, TEST_ACCURACY, ModelStore


def should_promote(store: ModelStore, bundle: Bundle) -> tuple[bool, str]:
    """Decide whether to promote a version: it must be at least as accurate as the production model on the same test images.

    A model with other test images is never promoted automatically: the accuracies are not comparable, and only the user can decide
    to replace a model by one for other data. The first model is always promoted, and so is one that replaces a damaged model.

    Returns:
        Whether to promote, and the reason as a clause for a message.

    Raises:
        StoreError: if the store cannot be read.
    """
    production = store.aliases(bundle.name).get(PRODUCTION)
    if production is None or production not in store.versions(bundle.name):
        return True, f"{bundle.name} has no production version yet"
    reference = f"{bundle.name}@{production}"
    try:
        present = store.manifest(reference)
    except BundleError as error:
        return True, f"the production version is damaged ({error})"
    if bundle.manifest.tested_on != present.tested_on:
        return (
            False,
            f"the production model {reference} has other test images ({present.dataset_name}), so the accuracies are not comparable",
        )
    ours, theirs = (manifest.metrics.get(TEST_ACCURACY) for manifest in (bundle.manifest, present))
    if ours is None or theirs is None:
        return False, f"it cannot be compared with the production model {reference}: a test accuracy is missing"
    verdict = "at least" if ours >= theirs else "below"
    return ours >= theirs, f"test accuracy {ours:.2%} is {verdict} the {theirs:.2%} of the production model {reference}"

"""Decides whether a new version becomes the production version."""

from __future__ import annotations

from cifar_ray.errors import BundleError
from cifar_ray.store.bundle import Bundle
from cifar_ray.store.registry import PRODUCTION, TEST_ACCURACY, ModelStore


def should_promote(store: ModelStore, bundle: Bundle) -> tuple[bool, str]:
    """The `auto` rule: promote what is at least as accurate on the same test images as the present production model.

    A model tested on other images is never promoted by itself: its figure does not compare, and replacing a model
    by one for other data is for the user to say. The first model, or one in place of a damaged one, always is.

    Returns:
        Whether to promote, and why, as a clause to print.

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
        return True, f"the present production version is damaged ({error})"
    if bundle.manifest.tested_on != present.tested_on:
        return False, f"{reference}, in production, was tested on other images ({present.dataset_name}), so accuracies do not compare"
    ours, theirs = (manifest.metrics.get(TEST_ACCURACY) for manifest in (bundle.manifest, present))
    if ours is None or theirs is None:
        return False, f"without test accuracies it does not compare with {reference}, in production"
    verdict = "at least" if ours >= theirs else "below"
    return ours >= theirs, f"test accuracy {ours:.2%} is {verdict} the {theirs:.2%} of {reference}, in production"

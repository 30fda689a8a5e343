"""Decides whether a new version becomes the production version."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from cifar_ray.errors import BundleError, ConcurrentChangeError
from cifar_ray.metrics.intervals import accuracy_interval, describe_accuracy
from cifar_ray.store.aliases import Aliases
from cifar_ray.store.bundle import Bundle
from cifar_ray.store.manifest import Manifest
from cifar_ray.store.registry import TEST_ACCURACY, ModelStore

# Metrics and the keys of `image_counts` that belong to them, best first
_VALIDATION = {"cv_accuracy": "cv", "val_accuracy": "val"}
_NAMES = {"test": "test accuracy", "val": "validation accuracy", "cv": "cross-validated accuracy"}


@dataclass(frozen=True)
class _Figure:
    """An accuracy of a model.

    Attributes:
        split: `test`, `val` or `cv`.
        accuracy: 0–1.
        count: number of pictures; `None` for a model of release 0.1.
    """

    split: str
    accuracy: float
    count: int | None

    def __str__(self) -> str:
        text = describe_accuracy(self.accuracy, self.count)
        return text if self.count is None or "pictures" in text else f"{text} ({self.count:,} pictures)"

    def interval(self, count: int) -> tuple[float, float]:
        """95 % interval; `count` is used if the number of pictures is unknown."""
        known = count if self.count is None else self.count
        return accuracy_interval(round(self.accuracy * known), known)


def promote_new(store: ModelStore, bundle: Bundle, when: Literal["auto", "always", "never"]) -> tuple[bool, str]:
    """Promote a new version, or not. If another process promotes a version meanwhile, the decision is made again.

    Args:
        store: store of the version.
        bundle: the version.
        when: `auto` asks `should_promote`.

    Returns:
        Whether it was promoted, and the reason as a clause for a message.

    Raises:
        StoreError: if the store cannot be read or written.
        BundleError: if the bundle was damaged after it was saved.
    """
    while True:
        seen = store.pointers(bundle.name)
        promote, reason = _decide(store, bundle, seen) if when == "auto" else (when == "always", f"--promote {when}")
        try:
            if promote:
                store.promote(bundle.name, bundle.version, replacing=seen)
        except ConcurrentChangeError:
            continue
        return promote, reason + (_against_chance(bundle.manifest, _best_figure(bundle.manifest)) if when == "auto" else "")


def should_promote(store: ModelStore, bundle: Bundle) -> tuple[bool, str]:
    """Decide whether to promote a version.

    On the same test images, it must be at least as accurate as the production model. If the test images are missing or differ, but data
    set and classes have the same names, validation accuracies decide: they come from different images, so only a model whose 95 %
    interval lies below that of the production model is refused. A model of the same data set with other classes is promoted, because
    the user has changed the classes. A model of another data set, or with other groups of classes, never is. The first model is
    always promoted, and so is one that replaces a damaged model.

    Returns:
        Whether to promote, and the reason as a clause for a message.

    Raises:
        StoreError: if the store cannot be read.
    """
    promote, reason = _decide(store, bundle, store.pointers(bundle.name))
    return promote, reason + _against_chance(bundle.manifest, _best_figure(bundle.manifest))


def describe_production(store: ModelStore, name: str, version: int, before: int | None) -> str:
    """Describe a version that a user put into production: its accuracy beside that of the version before it, and beside chance.

    Args:
        store: holds both.
        name: name of the model.
        version: the version.
        before: the version that was in production; `None` if there was none.

    Returns:
        One line; empty if the version has no accuracy.
    """
    new = store.manifest(f"{name}@{version}")
    present = None
    if before is not None and before != version and before in store.versions(name):
        with contextlib.suppress(BundleError):
            present = store.manifest(f"{name}@{before}")
    figures = _comparable(new, present) if present else None
    ours = figures[0] if figures else _best_figure(new)
    if ours is None:
        return ""
    text = f"{_NAMES[ours.split]} {ours}"
    if present is not None:
        theirs = figures[1] if figures else _best_figure(present)
        shown = f"{_NAMES[theirs.split]} {theirs}" if theirs else "no accuracy"
        same = figures is not None and ours.split == "test"
        text += f"; before, {name}@{before}: {shown}{'' if same or not theirs else ', on its own pictures'}"
    return text + _against_chance(new, ours)


def _comparable(new: Manifest, present: Manifest) -> tuple[_Figure, _Figure] | None:
    """The accuracies of two models by the same measure: on the same test images, else validation accuracies."""
    if new.tested_on == present.tested_on and (figures := _both(_test(new), _test(present))):
        return figures
    return _both(_validation(new), _validation(present))


def _decide(store: ModelStore, bundle: Bundle, seen: Aliases) -> tuple[bool, str]:
    production = seen.production
    if production is None or production not in store.versions(bundle.name):
        found = _best_figure(bundle.manifest)
        return True, f"{bundle.name} has no production version yet" + (f"; {_NAMES[found.split]} {found}" if found else "")
    reference = f"{bundle.name}@{production}"
    try:
        present = store.manifest(reference)
    except BundleError as error:
        return True, f"the production version is damaged ({error})"
    new = bundle.manifest
    if new.tested_on == present.tested_on and (figures := _both(_test(new), _test(present))):
        ours, theirs = figures
        verdict = "at least" if ours.accuracy >= theirs.accuracy else "below"
        return ours.accuracy >= theirs.accuracy, f"test accuracy {ours} is {verdict} the {theirs} of the production model {reference}"
    if new.dataset_name != present.dataset_name:
        return False, (
            f"the production model {reference} has another data set ({present.dataset_name}) and other test images, "
            "so the accuracies are not comparable"
        )
    if new.class_names != present.class_names:
        return _with_other_classes(new, present, reference)
    return _by_validation(new, present, reference)


def _with_other_classes(new: Manifest, present: Manifest, reference: str) -> tuple[bool, str]:
    if list(new.train_config.get("groups") or ()) != list(present.train_config.get("groups") or ()):
        return False, f"the production model {reference} has other groups of classes, so the accuracies are not comparable"
    added, removed = (
        ", ".join(name for name in these.class_names if name not in others.class_names)
        for these, others in ((new, present), (present, new))
    )
    changes = "; ".join(f"{word}: {names}" for word, names in (("new", added), ("removed", removed)) if names) or "another order"
    figures = _both(_best_figure(new), _best_figure(present))
    now, before = (f"{_NAMES[figure.split]} {figure}" for figure in figures) if figures else ("", "")
    compared = f"; {now}; with the old classes {before}" if figures else ""
    return True, f"it has other classes than the production model {reference} ({changes}){compared}"


def _by_validation(new: Manifest, present: Manifest, reference: str) -> tuple[bool, str]:
    kinds = [name for name in _VALIDATION if name in new.metrics and name in present.metrics]  # a fine-tuned model has no cross-validation
    figures = _both(_validation(new, kinds), _validation(present, kinds)) or _both(_validation(new), _validation(present))
    if figures is None:
        missing = "an accuracy on the same test images or on validation images is missing"
        return False, f"it cannot be compared with the production model {reference}: {missing}"
    ours, theirs = figures
    count = ours.count or theirs.count
    if ours.accuracy >= theirs.accuracy:
        promote, verdict = True, "is at least"
    elif count is None:
        promote, verdict = False, "is below"
    else:
        promote = ours.interval(count)[1] >= theirs.interval(count)[0]
        verdict = "is below, but within the noise of" if promote else "is clearly below"
    return promote, f"{_NAMES[ours.split]} {ours} {verdict} the {theirs} of the production model {reference}"


def _both(ours: _Figure | None, theirs: _Figure | None) -> tuple[_Figure, _Figure] | None:
    return (ours, theirs) if ours and theirs else None


def _test(manifest: Manifest) -> _Figure | None:
    accuracy = manifest.metrics.get(TEST_ACCURACY)
    return None if accuracy is None else _Figure("test", accuracy, manifest.image_counts.get("test"))


def _validation(manifest: Manifest, kinds: Collection[str] = tuple(_VALIDATION)) -> _Figure | None:
    return next(
        (
            _Figure(split, manifest.metrics[name], manifest.image_counts.get(split))
            for name, split in _VALIDATION.items()
            if name in manifest.metrics and name in kinds
        ),
        None,
    )


def _best_figure(manifest: Manifest) -> _Figure | None:
    return _test(manifest) or _validation(manifest)


def _against_chance(manifest: Manifest, found: _Figure | None) -> str:
    """Chance level, with a warning for a model that is hardly better: below twice chance, or for two classes below halfway to 1."""
    if found is None:
        return ""
    chance = 1 / len(manifest.class_names)
    warning = ": the model is hardly better than guessing" if found.accuracy < min(2 * chance, (1 + chance) / 2) else ""
    return f"; guessing gives {100 * chance:.3g} %{warning}"

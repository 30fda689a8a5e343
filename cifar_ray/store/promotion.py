"""Decide whether a new version becomes the production version."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from cifar_ray.errors import BundleError, ConcurrentChangeError
from cifar_ray.metrics.score import Score
from cifar_ray.store.aliases import Aliases
from cifar_ray.store.bundle import Bundle
from cifar_ray.store.log import Reason
from cifar_ray.store.manifest import Manifest
from cifar_ray.store.registry import ModelStore

_NAMES = {"test": "test", "val": "validation", "cv": "cross-validated"}
_VALIDATION = ("cv", "val")  # best first


@dataclass(frozen=True)
class _Figure:
    """A score of a model on a split, `test`, `val` or `cv`."""

    split: str
    score: Score

    @classmethod
    def find(cls, manifest: Manifest, split: str) -> _Figure | None:
        """The figure of a split; `None` if the model has none."""
        score = Score.find(manifest.metrics, split, manifest.image_counts.get(split))
        return None if score is None else cls(split, score)

    @property
    def value(self) -> float:
        """0–1."""
        return self.score.value

    @property
    def named(self) -> str:
        """Name and value, for example test accuracy 93.2 %."""
        return f"{_NAMES[self.split]} {self.score.name} {self}"

    def __str__(self) -> str:
        text, count = str(self.score), self.score.count
        return text if count is None or "picture" in text else f"{text} ({count:,} picture{'s' * (count != 1)})"


def promote_new(store: ModelStore, bundle: Bundle, when: Literal["auto", "always", "never"]) -> tuple[bool, str]:
    """Decide whether to promote a new version, and do it. If another process promotes a version meanwhile, decide again.

    Args:
        store: store of the version.
        bundle: the version.
        when: `auto` decides as `should_promote`.

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
                store.promote(bundle.name, bundle.version, replacing=seen, reason=Reason("promote", reason))
        except ConcurrentChangeError:
            continue
        return promote, reason + (_against_chance(bundle.manifest, _best_figure(bundle.manifest)) if when == "auto" else "")


def should_promote(store: ModelStore, bundle: Bundle) -> tuple[bool, str]:
    """Decide whether to promote a version.

    On the same test images, the version must be at least as accurate as the production model. If the test images are missing or differ,
    but data set and classes have the same names, validation accuracies decide. They come from different images, so a version is refused
    only if its 95 % interval lies below that of the production model. A version for the same data set with other classes is promoted,
    because the user has changed the classes. A version for another task, another data set or other groups of classes is never promoted.
    The first version of a model is always promoted, and so is a version that replaces a damaged one.

    Returns:
        Whether to promote, and the reason as a clause for a message.

    Raises:
        StoreError: if the store cannot be read.
    """
    promote, reason = _decide(store, bundle, store.pointers(bundle.name))
    return promote, reason + _against_chance(bundle.manifest, _best_figure(bundle.manifest))


def describe_production(store: ModelStore, name: str, version: int, before: int | None) -> str:
    """Describe a version that a user put into production: its accuracy, that of the version before it, and chance level.

    Args:
        store: store of both versions.
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
    figures = _comparable(new, present) if present and present.task == new.task else None
    ours = figures[0] if figures else _best_figure(new)
    if ours is None:
        return ""
    text = ours.named
    if present is not None:
        theirs = figures[1] if figures else _best_figure(present)
        shown = theirs.named if theirs else "no accuracy"
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
        return True, f"{bundle.name} has no production version yet" + (f"; {found.named}" if found else "")
    reference = f"{bundle.name}@{production}"
    try:
        present = store.manifest(reference)
    except BundleError as error:
        return True, f"the production version is damaged ({error})"
    new = bundle.manifest
    if new.task != present.task:
        return False, f"the production model {reference} is {present.task} and this one {new.task}, so the figures are not comparable"
    if new.tested_on == present.tested_on and (figures := _both(_test(new), _test(present))):
        ours, theirs = figures
        verdict = "at least" if ours.value >= theirs.value else "below"
        return ours.value >= theirs.value, f"{ours.named} is {verdict} the {theirs} of the production model {reference}"
    if new.dataset_name != present.dataset_name:
        return False, (
            f"the production model {reference} has another data set ({present.dataset_name}) and was not tested on the same images, "
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
    now, before = (figure.named for figure in figures) if figures else ("", "")
    compared = f"; {now}; with the old classes {before}" if figures else ""
    return True, f"it has other classes than the production model {reference} ({changes}){compared}"


def _by_validation(new: Manifest, present: Manifest, reference: str) -> tuple[bool, str]:
    kinds = [
        split for split in _VALIDATION if _Figure.find(new, split) and _Figure.find(present, split)
    ]  # a fine-tuned model has no cross-validation
    figures = _both(_validation(new, kinds), _validation(present, kinds)) or _both(_validation(new), _validation(present))
    if figures is None:
        missing = f"an {'accuracy' if new.task == 'single-label' else 'mAP'} on the same test images or on validation images is missing"
        return False, f"it cannot be compared with the production model {reference}: {missing}"
    ours, theirs = figures
    count = ours.score.count or theirs.score.count
    if ours.value >= theirs.value:
        promote, verdict = True, "is at least"
    elif count is None:
        promote, verdict = False, "is below"
    else:
        promote = ours.score.interval(count)[1] >= theirs.score.interval(count)[0]
        verdict = "is below, but within the noise of" if promote else "is clearly below"
    return promote, f"{ours.named} {verdict} the {theirs} of the production model {reference}"


def _both(ours: _Figure | None, theirs: _Figure | None) -> tuple[_Figure, _Figure] | None:
    return (ours, theirs) if ours and theirs else None


def _test(manifest: Manifest) -> _Figure | None:
    return _Figure.find(manifest, "test")


def _validation(manifest: Manifest, splits: Collection[str] = _VALIDATION) -> _Figure | None:
    return next((figure for split in splits if (figure := _Figure.find(manifest, split))), None)


def _best_figure(manifest: Manifest) -> _Figure | None:
    return _test(manifest) or _validation(manifest)


def _against_chance(manifest: Manifest, found: _Figure | None) -> str:
    """Chance level; with a warning if the accuracy is below twice chance or, for two classes, below halfway between chance and 1."""
    if found is None or manifest.task == "multi-label":  # the mAP of guessing depends on how often each label occurs
        return ""
    chance = 1 / len(manifest.class_names)
    warning = ": the model is hardly better than guessing" if found.value < min(2 * chance, (1 + chance) / 2) else ""
    return f"; guessing gives {100 * chance:.3g} %{warning}"

"""Which new versions are promoted by themselves, and what the user is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from cifar_ray.store import Manifest, ModelStore, should_promote
from cifar_ray.store.promotion import promote_new

Weights = dict[str, torch.Tensor]
MakeManifest = Callable[..., Manifest]


@pytest.mark.parametrize(
    ("present", "candidate", "verdict"),
    [
        ({}, {}, (True, "at least")),
        ({}, {"metrics": {"test_accuracy": 0.91}}, (True, "91.00 % is at least the 90.00 % of the production model pets@1")),
        ({}, {"metrics": {"test_accuracy": 0.89}}, (False, "89.00 % is below the 90.00 % of the production model pets@1")),
        ({}, {"dataset_fingerprint": "f" * 64}, (True, "at least")),
        ({"test_fingerprint": ""}, {"test_fingerprint": ""}, (True, "at least")),
        ({}, {"test_fingerprint": "f" * 64, "dataset_name": "birds"}, (False, "pets@1 has another data set (pets)")),
        ({}, {"metrics": {}}, (False, "an accuracy on the same test images or on validation images is missing")),
        ({"metrics": {}}, {}, (False, "an accuracy on the same test images or on validation images is missing")),
    ],
)
def test_auto_promotes_what_is_at_least_as_good_on_the_same_test_images(
    store: ModelStore, make_manifest: MakeManifest, present: dict[str, Any], candidate: dict[str, Any], verdict: tuple[bool, str]
) -> None:
    weights = {"w": torch.zeros(1)}
    store.save("pets", make_manifest(**present), weights)
    store.promote("pets", 1)
    promote, reason = should_promote(store, store.save("pets", make_manifest(**candidate), weights))
    assert promote is verdict[0]
    assert verdict[1] in reason


def test_auto_promotes_the_first_model_and_one_in_place_of_a_damaged_one(
    store: ModelStore, make_manifest: MakeManifest, weights: Weights, tmp_path: Path
) -> None:
    poor = make_manifest(metrics={})
    first = store.save("pets", poor, weights)
    assert should_promote(store, first) == (True, "pets has no production version yet")
    store.promote("pets", 1)
    second = store.save("pets", poor, weights)
    (tmp_path / "models/pets/1/manifest.json").write_text("{")
    promote, reason = should_promote(store, second)
    assert promote
    assert "damaged" in reason
    shutil.rmtree(tmp_path / "models/pets/1")
    assert should_promote(store, second)[0]


OTHER_TEST = {"test_fingerprint": "f" * 64}


def validated(accuracy: float, count: int | None, name: str = "val") -> dict[str, Any]:
    return {"metrics": {f"{name}_accuracy": accuracy}, "image_counts": {} if count is None else {name: count}}


@pytest.mark.parametrize(
    ("present", "candidate", "verdict"),
    [
        (
            validated(0.9, 100),
            validated(0.95, 120),
            (True, "validation accuracy 95.0 % (89.5–97.7 %, 120 pictures) is at least the 90.0 %"),
        ),
        (validated(0.9, 100), validated(0.85, 100), (True, "is below, but within the noise of the 90.0 % (82.6–94.5 %, 100 pictures)")),
        (
            validated(0.9, 100),
            validated(0.6, 100),
            (False, "is clearly below the 90.0 % (82.6–94.5 %, 100 pictures) of the production model"),
        ),
        (validated(0.9, 5000), validated(0.85, 5000), (False, "85.00 % (5,000 pictures) is clearly below the 90.00 % (5,000 pictures)")),
        (validated(0.9, None), validated(0.85, 100), (True, "within the noise of the 90.00 %")),  # the version before counted no pictures
        (validated(0.9, None), validated(0.6, 100), (False, "clearly below")),
        (validated(0.9, None), validated(0.89, None), (False, "is below")),
        (
            validated(0.9, 30),
            validated(0.88, 200, "cv"),
            (True, "cross-validated accuracy 88.0 % (82.8–91.8 %, 200 pictures) is below, but"),
        ),
        (validated(0.9, 30, "cv"), validated(0.5, 200, "cv"), (False, "is clearly below")),
    ],
)
def test_validation_accuracy_decides_where_test_images_are_missing_or_differ(
    store: ModelStore, make_manifest: MakeManifest, present: dict[str, Any], candidate: dict[str, Any], verdict: tuple[bool, str]
) -> None:
    weights = {"w": torch.zeros(1)}
    store.save("pets", make_manifest(**present), weights)
    store.promote("pets", 1)
    for number, other in enumerate((OTHER_TEST, OTHER_TEST | {"metrics": candidate["metrics"] | {"test_accuracy": 0.2}}, {})):
        promote, reason = should_promote(store, store.save("pets", make_manifest(**candidate | other), weights))
        assert promote is verdict[0], number
        assert verdict[1] in reason
        assert "guessing gives 50 %" in reason


def test_a_fine_tuned_model_is_compared_by_what_both_models_have(store: ModelStore, make_manifest: MakeManifest) -> None:
    weights = {"w": torch.zeros(1)}
    counts = {"val": 300, "cv": 300}
    probe = make_manifest(test_fingerprint="", metrics={"cv_accuracy": 0.99, "val_accuracy": 0.80}, image_counts=counts)
    store.save("pets", probe, weights)
    store.promote("pets", 1)
    tuned = make_manifest(test_fingerprint="", dataset_fingerprint="f" * 64, metrics={"val_accuracy": 0.90}, image_counts={"val": 300})
    promote, reason = should_promote(store, store.save("pets", tuned, weights))
    assert promote
    assert "validation accuracy 90.0 %" in reason
    assert "the 80.0 %" in reason


def test_a_model_with_an_added_class_is_promoted_and_the_reason_says_so(store: ModelStore, make_manifest: MakeManifest) -> None:
    weights = {"w": torch.zeros(1)}
    store.save("pets", make_manifest(), weights)
    store.promote("pets", 1)
    changed = {"class_names": ("cat", "eel", "dog"), "metrics": {"val_accuracy": 0.7}, "image_counts": {"val": 90}}
    promote, reason = should_promote(store, store.save("pets", make_manifest(**changed, **OTHER_TEST), weights))
    assert promote
    assert reason == (
        "it has other classes than the production model pets@1 (new: eel); validation accuracy 70.0 % (59.9–78.5 %, 90 pictures); "
        "with the old classes test accuracy 90.00 %; guessing gives 33.3 %"
    )
    store.promote("pets", 2)
    promote, reason = should_promote(store, store.save("pets", make_manifest(**OTHER_TEST), weights))
    assert promote
    assert "(removed: eel)" in reason
    grouped = make_manifest(**changed, train_config={"groups": ["cat=cat", "rest=dog,eel"]}, test_fingerprint="a" * 64)
    grouped = grouped.model_copy(update={"class_names": ("cat", "rest")})
    promote, reason = should_promote(store, store.save("pets", grouped, weights))
    assert not promote
    assert "other groups of classes" in reason


def test_classes_in_another_order_or_several_new_ones_are_named(store: ModelStore, make_manifest: MakeManifest) -> None:
    weights = {"w": torch.zeros(1)}
    store.save("pets", make_manifest(metrics={}), weights)
    store.promote("pets", 1)
    for names, changes in ((("dog", "cat"), "(another order)"), (("cat", "dog", "eel", "frog"), "(new: eel, frog)")):
        bundle = store.save("pets", make_manifest(class_names=names, metrics={}, test_fingerprint=""), weights)
        assert should_promote(store, bundle) == (True, f"it has other classes than the production model pets@1 {changes}")


@pytest.mark.parametrize(("when", "promoted"), [("always", True), ("never", False)])
def test_the_users_word_decides_and_is_the_reason(
    store: ModelStore, make_manifest: MakeManifest, when: Literal["always", "never"], promoted: bool
) -> None:
    worse = store.save("pets", make_manifest(metrics={"test_accuracy": 0.1}), {"w": torch.zeros(1)})
    assert promote_new(store, worse, when) == (promoted, f"--promote {when}")
    assert store.aliases("pets") == ({"production": 1} if promoted else {})


def test_the_rule_gives_its_reason_and_the_chance_level(store: ModelStore, make_manifest: MakeManifest) -> None:
    first = store.save("pets", make_manifest(), {"w": torch.zeros(1)})
    assert promote_new(store, first, "auto") == (
        True,
        "pets has no production version yet; test accuracy 90.00 %; guessing gives 50 %",
    )


@pytest.mark.parametrize(
    ("classes", "accuracy", "weak"), [(2, 0.74, True), (2, 0.76, False), (10, 0.19, True), (10, 0.21, False), (3, 0.6, True)]
)
def test_a_first_model_that_hardly_beats_guessing_is_promoted_with_a_warning(
    store: ModelStore, make_manifest: MakeManifest, classes: int, accuracy: float, weak: bool
) -> None:
    names = tuple(f"class {number}" for number in range(classes))
    first = make_manifest(class_names=names, metrics={"val_accuracy": accuracy}, image_counts={"val": 40})
    promote, reason = should_promote(store, store.save("pets", first, {"w": torch.zeros(1)}))
    assert promote
    assert f"guessing gives {100 / classes:.3g} %" in reason
    assert ("hardly better than guessing" in reason) is weak
    assert "\n" not in reason


def test_multi_label_models_are_promoted_by_map_within_its_spread_and_never_across_tasks(
    store: ModelStore, make_manifest: Callable[..., Manifest], weights: Weights
) -> None:
    def save(**changes: Any) -> tuple[bool, str]:
        bundle = store.save("pets", make_manifest(image_counts={"val": 200}, **changes), weights)
        return promote_new(store, bundle, "auto")

    sets = {"task": "multi-label", "test_fingerprint": "", "dataset_fingerprint": "0"}
    assert save(**sets, metrics={"val_map": 0.8, "val_map_sd": 0.02}) == (
        True,
        "pets has no production version yet; validation mAP 80.0 % (76.1–83.9 %, 200 pictures)",
    )
    sets["dataset_fingerprint"] = "1"
    noise = save(**sets, metrics={"val_map": 0.78, "val_map_sd": 0.02})
    assert noise[0], noise
    assert "validation mAP 78.0 % (74.1–81.9 %, 200 pictures) is below, but within the noise of the 80.0 %" in noise[1]
    worse = save(**sets, metrics={"val_map": 0.6, "val_map_sd": 0.02})
    assert (worse[0], "is clearly below" in worse[1], "guessing" in worse[1]) == (False, True, False)
    other = save(metrics={"val_accuracy": 0.99})
    assert not other[0]
    assert "is multi-label and this one single-label, so the figures are not comparable" in other[1]

"""The head of a probe is multinomial logistic regression, and its cross-validation is honest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cifar_ray.training.probe import head as probe_head
from cifar_ray.training.probe.head import assign_folds, fit_head

Floats = npt.NDArray[np.float32]


def blobs(count: int = 300, classes: int = 3, width: int = 8, noise: float = 2.0, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Features around a centre for each class, of scales that standardising must undo."""
    chance = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = chance.normal(size=(classes, width))
    features = centres[labels] + noise * chance.normal(size=(count, width))
    return (features * np.linspace(0.1, 50, width) + 7).astype(np.float32), labels.astype(np.int64)


def fold_of(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return assign_folds(labels, np.arange(len(labels)), seed=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_agrees_with_scikit_learn(weighted: bool) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs()
    weights = np.where(labels == 0, 3, 1).astype(np.float32) if weighted else None
    fitted = fit_head(features.copy(), labels, 3, fold_of(labels), weights)
    standard = (features - features.mean(0)) / features.std(0)
    total = len(labels) if weights is None else float(weights.sum())
    model = linear_model.LogisticRegression(C=1 / (total * fitted.strength), tol=1e-8, max_iter=2000)
    model.fit(standard.astype(np.float64), labels, sample_weight=weights)
    np.testing.assert_allclose(
        np.exp(fitted.head.logits(features)) / np.exp(fitted.head.logits(features)).sum(1, keepdims=True),
        model.predict_proba(standard),
        atol=2e-3,
    )


def test_held_out_logits_come_from_heads_that_never_saw_their_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of a fold that are wrong in a way of their own change the logits of the other folds only."""
    monkeypatch.setattr(probe_head, "_STRENGTHS", (0.03,))
    features, labels = blobs()
    folds = fold_of(labels)
    plain = fit_head(features.copy(), labels, 3, folds)
    wrong = labels.copy()
    wrong[folds == 2] = (wrong[folds == 2] + 1) % 3
    spoiled = fit_head(features.copy(), wrong, 3, folds)
    here = folds == 2
    np.testing.assert_allclose(spoiled.held_out[here], plain.held_out[here], atol=0.02)
    assert np.abs(spoiled.held_out[~here] - plain.held_out[~here]).max() > 0.1


def test_random_labels_have_the_held_out_accuracy_of_guessing() -> None:
    chance = np.random.default_rng(1)
    features, labels = chance.normal(size=(200, 150)).astype(np.float32), chance.integers(0, 2, 200)
    fitted = fit_head(features, labels, 2, fold_of(labels))
    assert 0.35 < fitted.score < 0.65
    assert fitted.strength == 1.0, "the strongest regularisation"


def test_the_fit_is_deterministic_and_says_its_figures() -> None:
    features, labels = blobs()
    first, again = (fit_head(features.copy(), labels, 3, fold_of(labels)) for _ in range(2))
    np.testing.assert_array_equal(first.head.weight, again.head.weight)
    np.testing.assert_array_equal(first.held_out, again.held_out)
    assert first.held_out.shape == (300, 3)
    assert first.score == (first.held_out.argmax(1) == labels).mean()
    assert first.rows.tolist() == list(range(300))


def test_class_weights_move_the_decision_to_the_rare_class() -> None:
    features, labels = blobs(600, classes=2, noise=3)
    kept = (labels == 0) | (np.arange(600) % 20 == 1)
    features, labels = features[kept], labels[kept]
    balanced = np.where(labels == 0, 1 / (labels == 0).sum(), 1 / (labels == 1).sum()).astype(np.float32)
    recall = []
    for weights in (None, balanced * len(labels) / 2):
        fitted = fit_head(features.copy(), labels, 2, fold_of(labels), weights)
        recall.append((fitted.held_out.argmax(1) == 1)[labels == 1].mean())
    assert recall[1] > recall[0] + 0.2


def test_one_fold_is_held_out_where_all_would_need_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    folds = fold_of(labels)
    all_folds = fit_head(features.copy(), labels, 3, folds)
    monkeypatch.setattr(probe_head, "_MAX_FOLD_LOGITS", 300 * 5 * 3 - 1)
    one = fit_head(features.copy(), labels, 3, folds)
    assert one.rows.tolist() == np.flatnonzero(folds == 0).tolist()
    assert one.held_out.shape == (60, 3)
    assert one.score == (one.held_out.argmax(1) == labels[one.rows]).mean()
    if one.strength == all_folds.strength:
        np.testing.assert_allclose(one.head.weight, all_folds.head.weight, atol=1e-2)


def test_folds_are_stratified_and_follow_from_the_seed() -> None:
    labels = np.repeat([0, 1, 2], [50, 10, 5])
    folds = assign_folds(labels, np.arange(65), seed=0)
    for label, count in ((0, 10), (1, 2), (2, 1)):
        assert np.bincount(folds[labels == label], minlength=5).tolist() == [count] * 5
    np.testing.assert_array_equal(folds, assign_folds(labels, np.arange(65), seed=0))
    assert (folds != assign_folds(labels, np.arange(65), seed=1)).any()


def test_a_burst_is_in_one_fold_whatever_its_labels() -> None:
    chance = np.random.default_rng(0)
    groups, labels = np.repeat(np.arange(40), 5), chance.integers(0, 3, 200)
    folds = assign_folds(labels, groups, seed=0)
    assert all(len(set(folds[groups == group])) == 1 for group in range(40))
    assert set(folds) == set(range(5))
    np.testing.assert_array_equal(folds, assign_folds(labels, groups * 7 + 3, seed=0))


@pytest.mark.parametrize("counts", [(1, 1), (2, 1, 1), (1, 30)])
def test_classes_with_one_picture_are_fitted(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    fitted = fit_head(features, labels, len(counts), fold_of(labels))
    assert np.isfinite(fitted.held_out).all()
    assert np.isfinite(fitted.head.weight).all()
    assert np.isfinite(fitted.loss)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    features, labels = blobs()
    features[:, 3] = 5
    fitted = fit_head(features.copy(), labels, 3, fold_of(labels))
    assert np.isfinite(fitted.head.weight).all()
    assert (fitted.head.logits(features).argmax(1) == labels).mean() > 0.5

"""Several labels per picture: the figures are those of scikit-learn, and the rules keep what they promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score, coverage_error, f1_score, log_loss, precision_recall_fscore_support

from cifar_ray.metrics.label_rules import LabelRules, fit_rules
from cifar_ray.metrics.label_sets import average_precisions, calibrate_labels, evaluate_label_sets, map_spread, mean_average_precision
from cifar_ray.metrics.score import Score

Drawn = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]


def draw(count: int, rates: tuple[float, ...] = (0.5, 0.2, 0.05, 0.3), strength: float = 2.0, seed: int = 0) -> Drawn:
    """Logits of a good model, calibrated if `strength` is 1, and labels, of which a row may have none."""
    rng = np.random.default_rng(seed)
    true = rng.normal(np.log(rates) - np.log1p(-np.array(rates)), 2, (count, len(rates)))
    labels = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.uint8)
    return (strength * true).astype(np.float32), labels


def test_the_figures_are_those_of_scikit_learn() -> None:
    logits, labels = draw(300)
    logits = np.round(logits, 1)  # equal scores
    rules = LabelRules((0.3, 0.5, 0.6, 0.4), (0.5, 1.0, 1.5, 2.0), (0.1, 0.0, -0.2, 0.0))
    figures = evaluate_label_sets(logits, labels, rules)
    probabilities = rules.probabilities(logits)
    given = rules.labels(probabilities)
    np.testing.assert_allclose(figures.average_precision, average_precision_score(labels, logits, average=None))
    assert figures.score == pytest.approx(average_precision_score(labels, logits, average="macro"))
    assert figures.micro_f1 == pytest.approx(f1_score(labels, given, average="micro"))
    assert figures.macro_f1 == pytest.approx(f1_score(labels, given, average="macro"))
    precision, recall, f1, occurs = precision_recall_fscore_support(labels, given)
    np.testing.assert_allclose(figures.per_class_precision(), precision)
    np.testing.assert_allclose(figures.per_class_recall(), recall)
    np.testing.assert_allclose(figures.per_class_f1(), f1)
    np.testing.assert_array_equal(figures.occurs, occurs)
    scaled = logits.astype(np.float64) * rules.slopes + rules.offsets
    assert figures.coverage == pytest.approx(coverage_error(labels, scaled))
    assert figures.loss == pytest.approx(sum(log_loss(labels[:, c], probabilities[:, c].astype(np.float64)) for c in range(4)), rel=1e-5)
    assert figures.labels_per_picture == pytest.approx(labels.sum(axis=1).mean())
    np.testing.assert_array_equal(np.diag(figures.co_occurrence), occurs)
    assert figures.co_occurrence[0, 3] == (labels[:, 0] & labels[:, 3]).sum()


def test_a_class_that_does_not_occur_has_no_average_precision_and_does_not_count() -> None:
    logits, labels = draw(100)
    labels[:, 2] = 0
    found = average_precisions(logits, labels)
    assert np.isnan(found[2])
    assert mean_average_precision(logits, labels) == pytest.approx(np.delete(found, 2).mean())
    nothing = evaluate_label_sets(logits, np.zeros_like(labels), LabelRules((2.0,) * 4, (1.0,) * 4, (0.0,) * 4))
    assert (nothing.score, nothing.micro_f1, nothing.macro_f1, nothing.coverage) == (0, 0, 0, 0)


def test_the_spread_of_the_map_is_that_of_other_pictures() -> None:
    measured = [mean_average_precision(*draw(200, seed=seed)) for seed in range(100)]
    estimated = np.mean([map_spread(*draw(200, seed=seed)) for seed in range(20)])
    assert estimated == pytest.approx(np.std(measured), rel=0.3)


def test_fitted_rules_calibrate_each_class_and_keep_the_order() -> None:
    logits, labels = draw(4000, strength=3)
    logits += np.float32([2, 0, -3, 1])
    rules, plain = fit_rules(logits, labels), LabelRules.plain(4)
    fresh, truth = draw(4000, strength=3, seed=1)
    fresh += np.float32([2, 0, -3, 1])
    np.testing.assert_allclose(rules.slopes, 1 / 3, rtol=0.15)
    errors = [calibrate_labels(one.probabilities(fresh), truth).error for one in (rules, plain)]
    assert errors[0] < 0.02
    assert errors[1] > 0.05
    assert evaluate_label_sets(fresh, truth, rules).score == evaluate_label_sets(fresh, truth, plain).score


def test_thresholds_give_the_best_f1_and_half_would_not() -> None:
    logits, labels = draw(4000)
    rules = fit_rules(logits, labels)
    fresh, truth = draw(4000, seed=1)
    best = [max(f1_score(truth[:, c], rules.probabilities(fresh)[:, c] >= t) for t in np.linspace(0.05, 0.95, 91)) for c in range(4)]
    found = evaluate_label_sets(fresh, truth, rules)
    np.testing.assert_allclose(found.per_class_f1(), best, atol=0.03)
    halves = LabelRules((0.5,) * 4, rules.slopes, rules.offsets)
    assert found.macro_f1 > evaluate_label_sets(fresh, truth, halves).macro_f1 + 0.02


def test_a_class_with_few_positives_borrows_from_the_others() -> None:
    losses: dict[str, list[float]] = {"fitted": [], "alone": [], "plain": []}
    for seed in range(10):
        logits, labels = draw(60, rates=(0.4, 0.4, 0.4, 0.04), strength=3, seed=seed)
        fresh, truth = draw(2000, rates=(0.4, 0.4, 0.4, 0.04), strength=3, seed=100 + seed)
        rare = fresh[:, 3:], truth[:, 3:]
        rules = fit_rules(logits, labels)
        borrowed = LabelRules(rules.thresholds[3:], rules.slopes[3:], rules.offsets[3:])
        losses["fitted"].append(evaluate_label_sets(*rare, borrowed).loss)
        losses["alone"].append(evaluate_label_sets(*rare, fit_rules(logits[:, 3:], labels[:, 3:])).loss)
        losses["plain"].append(evaluate_label_sets(*rare, LabelRules.plain(1)).loss)
    assert np.mean(losses["fitted"]) < np.mean(losses["alone"]) < np.mean(losses["plain"])


def test_two_lucky_positives_do_not_set_a_threshold() -> None:
    logits, labels = draw(200, rates=(0.4, 0.4, 0.4, 0.4), strength=1)
    labels[:, 3] = 0
    labels[np.argsort(-logits[:, 3])[:2], 3] = 1  # perfect by chance: F1 of the labels alone is 1 just below the second
    rules = fit_rules(logits, labels)
    second = np.sort(rules.probabilities(logits)[:, 3])[-2]
    assert rules.thresholds[3] < 0.9 * second


@pytest.mark.parametrize("wanted", [0.7, 0.9])
def test_thresholds_reach_a_precision(wanted: float) -> None:
    reached = [
        evaluate_label_sets(*draw(2000, seed=100 + seed), fit_rules(*draw(2000, seed=seed), wanted)).per_class_precision()
        for seed in range(8)
    ]
    np.testing.assert_allclose(np.mean(reached, axis=0), wanted, atol=0.03)
    impossible = fit_rules(np.zeros((50, 1), np.float32), np.zeros((50, 1), np.uint8), min_precision=wanted)
    assert impossible.thresholds[0] == wanted


def test_a_map_whose_parts_are_all_alike_has_no_interval_of_width_zero() -> None:
    assert str(Score("map", 1.0, 30, 0.0)) == "100.0 % (30 pictures)"
    assert str(Score("map", 0.9, 30, 0.02)) == "90.0 % (86.1–93.9 %, 30 pictures)"

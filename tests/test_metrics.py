from __future__ import annotations

import numpy as np
import pytest

from cifar_ray.metrics.accuracy import Evaluation, count_top_k, evaluate_logits
from cifar_ray.metrics.calibration import calibrate
from cifar_ray.metrics.intervals import PairedComparison, accuracy_interval, holm, prediction_bias, sign_test


def test_accuracy_is_the_share_on_the_diagonal() -> None:
    evaluation = Evaluation(loss=1.0, confusion=np.array([[3, 1, 0], [0, 0, 4], [0, 0, 0]]))
    assert evaluation.count == 8
    assert evaluation.accuracy == pytest.approx(3 / 8)
    np.testing.assert_array_equal(evaluation.per_class_accuracy(), [0.75, 0.0, np.nan])
    assert evaluation.balanced_accuracy == pytest.approx(0.375)  # the third class has no images


def test_precision_recall_and_f1_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, precision_recall_fscore_support, top_k_accuracy_score

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500)
    logits = rng.normal(size=(500, 4)).astype(np.float32)
    logits[np.arange(500), labels] += 1
    evaluation = evaluate_logits(logits, labels, temperature=2.0)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, logits.argmax(1))
    np.testing.assert_allclose(evaluation.per_class_precision(), precision)
    np.testing.assert_allclose(evaluation.per_class_accuracy(), recall)
    np.testing.assert_allclose(evaluation.per_class_f1(), f1)
    assert evaluation.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert evaluation.macro_f1 == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    probabilities = np.exp(logits.astype(np.float64) / 2)
    probabilities /= probabilities.sum(1, keepdims=True)
    assert evaluation.loss == pytest.approx(log_loss(labels, probabilities))
    assert count_top_k(logits, labels, 2) == round(top_k_accuracy_score(labels, logits, k=2) * 500)
    assert count_top_k(np.zeros_like(logits), labels, 1) == (labels == 0).sum()  # as argmax


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 5), (0, 6), (3, 12), (40, 75), (900, 1100), (30_000, 30_500)])
def test_the_sign_test_is_the_exact_binomial_test(a: int, b: int) -> None:
    from scipy.stats import binomtest

    assert sign_test(a, b) == pytest.approx(binomtest(a, a + b).pvalue if a + b else 1.0, rel=1e-9)


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (8941, 10_000), (3, 7)])
def test_the_interval_of_an_accuracy_is_wilsons(correct: int, count: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(correct, count).proportion_ci(method="wilson")
    assert accuracy_interval(correct, count) == pytest.approx((expected.low, expected.high))
    assert accuracy_interval(0, 0) == (0.0, 1.0)


def test_several_tests_are_adjusted_as_holm_did() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_class_predicted_too_often_is_found_and_a_fair_network_is_not_accused() -> None:
    frogs = np.array([[60, 5, 35], [4, 60, 36], [1, 0, 99]])
    bias = prediction_bias(frogs)
    assert [(one.occurs, one.predicted) for one in bias] == [(100, 65), (100, 65), (100, 170)]
    assert all(one.significant for one in bias)
    fair = np.array([[90, 6, 4], [5, 88, 7], [5, 6, 89]])
    assert not any(one.significant for one in prediction_bias(fair))


def test_a_network_that_knows_how_often_it_is_right_has_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 100_000)
    labels = (rng.uniform(size=100_000) > sure).astype(np.int64)
    probabilities = np.stack([sure, 1 - sure], 1).astype(np.float32)
    honest = calibrate(probabilities, labels)
    assert honest.counts.sum() == 100_000
    assert honest.error < 0.01
    boastful = calibrate(np.stack([np.full(1000, 0.95), np.full(1000, 0.05)], 1).astype(np.float32), np.arange(1000) % 2)
    assert boastful.error == pytest.approx(0.45)
    assert boastful.overconfidence == pytest.approx(0.45)


def test_each_image_is_in_the_bin_of_its_confidence() -> None:
    confidence = np.array([0.55, 0.62, 0.68, 1.0])
    found = calibrate(np.stack([confidence, 1 - confidence], axis=1), np.array([0, 0, 1, 0]), bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 2, 0, 0, 1]
    assert found.confidence[[5, 6, 9]] == pytest.approx([0.55, 0.65, 1.0])
    assert found.accuracy[[5, 6, 9]] == pytest.approx([1.0, 0.5, 1.0])
    assert found.error == pytest.approx((0.45 + 2 * 0.15) / 4)


def test_a_paired_comparison_counts_only_the_images_where_the_models_differ() -> None:
    clear = PairedComparison(count=10_000, only_a=300, only_b=400)
    assert clear.difference == pytest.approx(0.01)
    assert clear.p_value < 0.001
    assert 0 < clear.interval[0] < 0.01 < clear.interval[1]
    none = PairedComparison(count=10_000, only_a=40, only_b=44)
    assert none.p_value > 0.7
    assert none.interval[0] < 0 < none.interval[1]

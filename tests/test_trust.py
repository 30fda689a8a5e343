from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest

from cifar_ray.metrics.accuracy import evaluate_logits, softmax
from cifar_ray.metrics.calibration import calibrate, fit_temperature, fit_temperature_if_better
from cifar_ray.metrics.trust import Trust

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def drawn(temperature: float, count: int = 20_000, seed: int = 0) -> tuple[Logits, Labels]:
    """Logits, and labels that come as often as the softmax of logits ÷ temperature says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(count, 5)).astype(np.float32)
    labels = (logits / temperature + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_the_labels_were_drawn_at_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    losses = [evaluate_logits(logits, labels, found * factor).loss for factor in (0.98, 1.0, 1.02)]
    assert losses[1] == min(losses)
    assert calibrate(softmax(logits, found), labels).error < 0.01


def test_probabilities_get_honest_and_no_answer_changes() -> None:
    logits, labels = drawn(0.3)
    trust = Trust.fit(logits[:5000], labels[:5000])
    rest, wanted = logits[5000:], labels[5000:]
    figures = trust.metrics(rest, wanted)
    assert figures["test_ece_uncalibrated"] > 0.1
    assert figures["test_ece"] < 0.02
    np.testing.assert_array_equal(softmax(rest, trust.temperature).argmax(axis=1), rest.argmax(axis=1))


@pytest.mark.parametrize("count", [40, 160, 600])
def test_few_images_do_not_make_probabilities_that_were_honest_worse(count: int) -> None:
    everywhere, labels = drawn(1.0)
    before = calibrate(softmax(everywhere), labels).error
    fitted, plain = [], []
    for seed in range(1, 41):
        few = drawn(1.0, count, seed)
        for found, errors in ((fit_temperature_if_better(*few), fitted), (fit_temperature(*few), plain)):
            errors.append(calibrate(softmax(everywhere, found), labels).error)
    assert np.mean(np.isclose(fitted, before)) >= 0.8
    assert np.mean(fitted) - before < 0.5 * (np.mean(plain) - before)


@pytest.mark.parametrize("count", [160, 600])
def test_few_images_are_enough_for_a_temperature_that_is_far_off(count: int) -> None:
    everywhere, labels = drawn(0.3)
    before = calibrate(softmax(everywhere), labels).error
    for seed in range(1, 11):
        found = fit_temperature_if_better(*drawn(0.3, count, seed))
        assert calibrate(softmax(everywhere, found), labels).error < 0.5 * before


def test_the_temperature_of_few_images_is_drawn_towards_1_as_if_50_more_supported_it() -> None:
    few = drawn(0.3, 150)
    assert fit_temperature_if_better(*few) == pytest.approx(fit_temperature(*few) ** 0.75)
    assert fit_temperature_if_better(*drawn(0.3, 9)) == 1  # two images in each of five folds are the least


def test_the_line_says_how_sure_the_calibration_error_is() -> None:
    logits, labels = drawn(0.3, 400)
    trust = Trust.fit(logits, labels)
    line = trust.describe(trust.metrics(logits, labels))
    assert re.search(r"^temperature 0\.\d+: calibration error .*% → .*% \(± .* points\); abstains", line)
    assert Trust.fit(logits[:5], labels[:5]).describe({}).startswith("temperature 1 (no other improves the calibration), ")


def test_logits_that_fit_perfectly_or_not_at_all_or_say_nothing_give_a_temperature_that_is_finite() -> None:
    labels = np.arange(30) % 3
    certain = 4 * np.eye(3, dtype=np.float32)[labels]
    assert 0.1 < fit_temperature(certain, labels) < 2
    assert softmax(certain, fit_temperature(certain, labels)).max() < 0.9999
    assert fit_temperature(-certain, labels) == 100
    assert 0.01 <= fit_temperature(np.zeros((30, 3), np.float32), labels) <= 100
    assert 0.01 <= fit_temperature(certain[:1], labels[:1]) <= 100


@pytest.mark.parametrize("count", [1, 7, 60, 5000])
def test_at_least_95_percent_of_the_images_fitted_on_are_answered(count: int) -> None:
    logits, labels = drawn(1.0, count)
    abstains = Trust.fit(logits, labels).abstains(logits)
    assert abstains.shape == (count,)
    assert abstains.mean() <= 0.05
    assert abstains.sum() >= count // 25


def test_images_of_which_the_network_says_little_are_abstained_from_and_without_a_threshold_none() -> None:
    logits, labels = drawn(1.0)
    nothing = np.full((3, 5), -1, np.float32)
    assert Trust.fit(logits, labels).abstains(nothing).all()
    assert not Trust(temperature=2.0).abstains(nothing).any()

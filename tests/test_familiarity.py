from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cifar_ray.metrics.familiarity import Familiarity, energy
from cifar_ray.metrics.trust import Trust

Floats = npt.NDArray[np.float32]
CLASSES, WIDTH = 3, 32
CENTRES = np.random.default_rng(7).gamma(1, size=(CLASSES, WIDTH))


def drawn(count: int, seed: int = 0) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Logits, features around the centre of each class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    features = CENTRES[labels] * rng.gamma(20, 1 / 20, (count, WIDTH))
    logits = 8 * np.eye(CLASSES)[labels] + rng.normal(size=(count, CLASSES))
    return logits.astype(np.float32), features.astype(np.float32), labels


def strange(count: int) -> tuple[Floats, Floats]:
    """Logits as sure as those of known pictures, and features in which other parts are strong."""
    logits, features, _ = drawn(count, 1)
    return logits + 1, features[:, ::-1].copy()


def test_pictures_with_strange_features_are_abstained_from_however_sure_the_logits_are() -> None:
    logits, features, labels = drawn(400)
    trust = Trust.fit(logits, labels, features)
    other = strange(200)
    assert trust.abstains(*other).mean() > 0.99
    assert trust.abstains(other[0]).mean() < 0.05, "the energy alone does not see it"


def test_pictures_with_weak_logits_are_still_abstained_from() -> None:
    logits, features, labels = drawn(400)
    _, known, _ = drawn(100, 1)
    assert Trust.fit(logits, labels, features).abstains(np.zeros((100, CLASSES), np.float32), known).all()


@pytest.mark.parametrize("count", [100, 400, 3000])
def test_about_95_percent_of_other_pictures_of_the_same_kind_are_answered(count: int) -> None:
    shares = []
    for seed in range(5):
        logits, features, labels = drawn(count, seed)
        fresh = drawn(2000, seed + 100)
        shares.append(Trust.fit(logits, labels, features).abstains(fresh[0], fresh[1]).mean())
    assert 0.03 < np.mean(shares) < 0.075


def test_near_duplicates_do_not_make_the_model_abstain_from_other_pictures() -> None:
    logits, features, _ = drawn(300)
    copies = [np.repeat(one[:80], 6, axis=0) for one in (logits, features)]
    groups = np.repeat(np.arange(80), 6)
    fresh = drawn(1000, 1)[:2]
    shares = []
    for given in (groups, None):
        fitted = Familiarity.fit(copies[0], copies[1], given)
        assert fitted is not None
        shares.append(fitted.abstains(*fresh).mean())
    assert shares[0] < 0.15
    assert shares[1] > 0.5, "else the groups would prove nothing"


def test_with_too_few_pictures_to_compare_with_the_energy_alone_decides() -> None:
    logits, features, labels = drawn(5)
    trust = Trust.fit(logits, labels, features)
    assert trust.familiarity is None
    np.testing.assert_array_equal(trust.abstains(*strange(50)), energy(strange(50)[0]) < trust.abstain_threshold)


def test_without_features_the_energy_decides_also_where_familiarity_is_fitted() -> None:
    logits, features, labels = drawn(400)
    trust = Trust.fit(logits, labels, features)
    none = np.zeros((400, 0), np.float32)
    np.testing.assert_array_equal(trust.abstains(logits, none), energy(logits) < trust.abstain_threshold)
    assert Trust.fit(logits, labels, none).familiarity is None


def test_features_that_never_change_or_are_zero_do_no_harm() -> None:
    logits, _, labels = drawn(50)
    for value in (0, 1):
        trust = Trust.fit(logits, labels, np.full((50, 4), value, np.float32))
        assert trust.abstains(logits, np.full((50, 4), value, np.float32)).mean() <= 0.1

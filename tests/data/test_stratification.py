"""Pictures with several labels are divided so that each part has its share of every label."""

from __future__ import annotations

import numpy as np

from cifar_ray.data.stratification import stratify

RATES = np.array([0.5, 0.3, 0.04, 0.01])


def test_each_part_has_its_share_of_rare_labels_where_chance_would_not() -> None:
    shares = [0.8, 0.1, 0.1]
    worst = {"stratified": 0.0, "random": 0.0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels = (rng.random((1000, 4)) < RATES).astype(np.uint8)
        parts = {"stratified": stratify(labels, np.arange(1000), shares, rng), "random": rng.choice(3, 1000, p=shares)}
        for name, part in parts.items():
            counts = np.array([labels[part == one].sum(axis=0) for one in range(3)])
            worst[name] = max(worst[name], np.abs(counts - np.outer(shares, labels.sum(axis=0))).max())
        sizes = np.bincount(parts["stratified"], minlength=3)
        np.testing.assert_allclose(sizes, [800, 100, 100], atol=6)
    assert worst["stratified"] <= 2
    assert worst["random"] > 10


def test_near_duplicates_share_a_part_and_pictures_without_labels_are_divided_too() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < 0.2).astype(np.uint8)
    groups = np.arange(200) // 4
    part = stratify(labels, groups, [0.5, 0.5], rng)
    assert (part.reshape(-1, 4) == part.reshape(-1, 4)[:, :1]).all()
    empty = part[~labels.any(axis=1)]
    assert 0.3 < empty.mean() < 0.7


def test_the_same_generator_divides_alike() -> None:
    labels = (np.random.default_rng(0).random((100, 3)) < 0.3).astype(np.uint8)
    first, again = (stratify(labels, np.arange(100), [0.7, 0.3], np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_rarest_label_is_divided_first_while_there_is_a_choice() -> None:
    labels = np.zeros((200, 2), np.uint8)
    labels[:100, 0] = labels[:12, 1] = 1  # the rare label is always beside the common one
    for seed in range(5):
        part = stratify(labels, np.arange(200), [0.5, 0.5], np.random.default_rng(seed))
        assert [int(labels[part == one, 1].sum()) for one in range(2)] == [6, 6]

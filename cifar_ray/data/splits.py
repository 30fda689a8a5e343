"""Draw validation and test splits from the training images, stratified by class, with each burst on one side."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from cifar_ray.data.bursts import MAX_PICTURES, count_bursts
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.stratification import stratify
from cifar_ray.errors import DataError

# Each split has its own random stream, so the test images do not depend on whether validation images are drawn.
_STREAM = {"test": 0, "val": 1}

_Indices = npt.NDArray[np.int64]
_logger = logging.getLogger(__name__)


def complete(found: DatasetSplits, val_fraction: float, test_fraction: float, seed: int) -> DatasetSplits:
    """Draw the splits that a data set lacks from its training images, stratified by class.

    Args:
        found: the data set with its own splits.
        val_fraction: fraction of the training images for validation; 0 means no validation, even if the data set has a split.
        test_fraction: fraction of all images for test, if the data set has no test split; 0 draws none.
        seed: seed of the draw; equal seeds draw equal images in every process.

    Raises:
        DataError: if a class has too few images to be in each split.
    """
    train = np.arange(len(found.train))
    val, test = found.val, found.test
    draws_val = val is None and val_fraction > 0
    if draws_val or (test is None and test_fraction > 0):
        _tell_bursts(found.train)
    if test is None and test_fraction > 0:
        train, drawn = draw(found.train, train, test_fraction, split="test", seed=seed, leave=1 + draws_val)
        test = found.train.subset(drawn)
    if draws_val:
        train, drawn = draw(found.train, train, val_fraction, split="val", seed=seed)
        val = found.train.subset(drawn)
    if val is not None and val_fraction == 0:
        _logger.warning("val_fraction is 0: ignoring the %d validation images of %s", len(val), found.name)
        val = None
    # If nothing was drawn, keep the memory-mapped array itself.
    rest = found.train if len(train) == len(found.train) else found.train.subset(train)
    return DatasetSplits(found.name, rest, val, test, found.class_descriptions)


def _tell_bursts(train: ImageDataset) -> None:
    if train.bursts is not None:
        pictures, bursts = count_bursts(train.bursts)
        if bursts:
            groups = f"{bursts:,} groups" if bursts > 1 else "one group"
            _logger.info("%s near-duplicates in %s stay on one side of each split", f"{pictures:,}", groups)
    elif train.files is not None and len(train) > MAX_PICTURES:
        _logger.info("splits are drawn without a search for near-duplicates, because there are more than %s pictures", f"{MAX_PICTURES:,}")


def draw(dataset: ImageDataset, pool: _Indices, fraction: float, *, split: str, seed: int, leave: int = 1) -> tuple[_Indices, _Indices]:
    """Draw a fraction of each class, at least one image; bursts stay whole if the class has enough bursts.

    Images with several labels are stratified iteratively, and bursts stay whole. A label with very few images may be missing in the draw.

    Args:
        dataset: the images with their labels.
        pool: int64, `[N]`: indices to draw from.
        fraction: fraction of the pool, 0–1.
        split: `val` or `test`.
        seed: seed of the draw.
        leave: number of images of each class that must remain in the pool.

    Returns:
        Remaining indices and drawn indices: int64, ascending, together `pool`.

    Raises:
        DataError: if a class has too few images.
    """
    generator = np.random.default_rng((seed, _STREAM[split]))
    labels = dataset.labels[pool]
    if dataset.is_multi_label:
        groups = pool if dataset.bursts is None else dataset.bursts[pool]
        taken = stratify(labels, groups, (1 - fraction, fraction), generator) == 1
        return pool[~taken], pool[taken]
    drawn = np.zeros(len(pool), np.bool_)
    by_class = np.argsort(labels, kind="stable")  # comparing all labels with each class would take seconds for a million images
    bounds = np.searchsorted(labels[by_class], np.arange(len(dataset.class_names) + 1))
    for label, class_name in enumerate(dataset.class_names):
        members = by_class[bounds[label] : bounds[label + 1]]
        if len(members) <= leave:
            raise DataError(
                f"class {class_name!r} has {len(members)} images, but a {split} split needs at least {leave + 1}; "
                f"add images or pass --{split}-fraction 0"
            )
        count = min(max(1, round(len(members) * fraction)), len(members) - leave)
        order = generator.permutation(members)
        drawn[order[:count] if dataset.bursts is None else _whole_bursts(order, dataset.bursts[pool][order], count, leave)] = True
    return pool[~drawn], pool[drawn]


def _whole_bursts(order: _Indices, bursts: _Indices, count: int, leave: int) -> _Indices:
    """Take at most `count` images in a random order without dividing a burst; if each burst is larger, take the smallest burst.

    Args:
        order: int64, `[M]`, the images of a class in random order.
        bursts: int64, `[M]`, number of the burst of each image.
        count: number of images to take.
        leave: number of bursts that must remain; a single image counts as a burst.

    Returns:
        The taken images, int64. If the class has too few bursts, the first `count` images, which may divide a burst.
    """
    numbers, first, sizes = np.unique(bursts, return_index=True, return_counts=True)
    if len(numbers) == len(order) or len(numbers) <= leave:
        return order[:count]
    taken: list[int] = []
    room = count
    for place in np.argsort(first):
        if sizes[place] <= room and len(taken) < len(numbers) - leave:
            taken.append(int(numbers[place]))
            room -= int(sizes[place])
    if not taken:  # each burst has more than `count` images
        taken.append(int(numbers[np.argmin(sizes)]))
    return order[np.isin(bursts, taken)]

"""Draw validation and test splits from the training images, stratified by class."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.errors import DataError

# Random stream of each split: the test images do not depend on whether validation images are drawn.
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
    return DatasetSplits(found.name, rest, val, test)


def draw(dataset: ImageDataset, pool: _Indices, fraction: float, *, split: str, seed: int, leave: int = 1) -> tuple[_Indices, _Indices]:
    """Draw a fraction of each class, at least one image.

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
    drawn = np.zeros(len(pool), np.bool_)
    for label, class_name in enumerate(dataset.class_names):
        members = np.flatnonzero(labels == label)
        if len(members) <= leave:
            raise DataError(
                f"class {class_name!r} has {len(members)} images, but a {split} split needs at least {leave + 1}; "
                f"add images or pass --{split}-fraction 0"
            )
        count = min(max(1, round(len(members) * fraction)), len(members) - leave)
        drawn[generator.permutation(members)[:count]] = True
    return pool[~drawn], pool[drawn]

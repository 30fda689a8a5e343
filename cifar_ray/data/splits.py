"""Which images are learnt from, which choose the best weights, and which are looked at once, at the end."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.errors import DataError

# Streams of the seed: the test images do not depend on whether validation images are drawn.
_STREAM = {"test": 0, "val": 1}

_Indices = npt.NDArray[np.int64]
_logger = logging.getLogger(__name__)


def complete(found: DatasetSplits, val_fraction: float, test_fraction: float, seed: int) -> DatasetSplits:
    """Draws the splits that a source does not bring along from its training images, stratified by class.

    Args:
        found: the data set as its source has it.
        val_fraction: share of the training images for validation; 0 gives no validation, even where the source has one.
        test_fraction: share of all images for test where the source has none; 0 draws none.
        seed: equal seeds draw equal images, in every process.

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
        _logger.warning("the %d validation images of %s are left out: val_fraction is 0", len(val), found.name)
        val = None
    # Drawing none keeps the memory-mapped array itself.
    rest = found.train if len(train) == len(found.train) else found.train.subset(train)
    return DatasetSplits(found.name, rest, val, test)


def draw(dataset: ImageDataset, pool: _Indices, fraction: float, *, split: str, seed: int, leave: int = 1) -> tuple[_Indices, _Indices]:
    """Draws a share of each class, at least one image of it.

    Args:
        dataset: where the labels are.
        pool: int64, `[N]`: indices to draw from.
        fraction: share of the pool, in 0…1.
        split: `val` or `test`: what the images are for.
        seed: of the draw.
        leave: images of each class that must remain in the pool.

    Returns:
        Indices left and indices drawn: int64, ascending, together `pool`.

    Raises:
        DataError: if a class has too few images for that.
    """
    generator = np.random.default_rng((seed, _STREAM[split]))
    labels = dataset.labels[pool]
    drawn = np.zeros(len(pool), np.bool_)
    for label, class_name in enumerate(dataset.class_names):
        members = np.flatnonzero(labels == label)
        if len(members) <= leave:
            raise DataError(
                f"class {class_name!r}: {len(members)} images are too few to draw {split} from, {leave + 1} are needed; "
                f"add some or pass --{split}-fraction 0"
            )
        count = min(max(1, round(len(members) * fraction)), len(members) - leave)
        drawn[generator.permutation(members)[:count]] = True
    return pool[~drawn], pool[drawn]

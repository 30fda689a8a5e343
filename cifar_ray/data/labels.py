"""Merge classes into groups."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.errors import DataError

_logger = logging.getLogger(__name__)


def regroup(splits: DatasetSplits, groups: Mapping[str, Sequence[str]]) -> DatasetSplits:
    """Replace classes by groups of classes.

    Args:
        splits: the data set with its original classes.
        groups: names of the classes of each group, by group name; images of a class in no group are dropped.

    Returns:
        The data set with the groups as classes, in their order. It shares the image arrays if no image is dropped.

    Raises:
        DataError: if a class is not in the data set.
    """
    names = splits.train.class_names
    new_label = np.full(len(names), -1, np.int64)
    for label, members in enumerate(groups.values()):
        for member in members:
            if member not in names:
                raise DataError(f"--groups: class {member!r} of {splits.name} not found. Available: {', '.join(names)}")
            new_label[names.index(member)] = label
    left_out = [name for name, label in zip(names, new_label, strict=True) if label < 0]
    if left_out:
        _logger.warning("ignoring classes that are in no group: %s", ", ".join(left_out))
    parts = {split: _relabel(part, new_label, tuple(groups)) for split, part in splits}
    descriptions = regroup_descriptions(splits.class_descriptions, groups)
    return DatasetSplits(splits.name, parts["train"], parts.get("val"), parts.get("test"), descriptions)


def regroup_descriptions(descriptions: Mapping[str, str], groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The description by name of each group that has only one class; the description of one class does not fit several."""
    return {group: descriptions[members[0]] for group, members in groups.items() if len(members) == 1 and members[0] in descriptions}


def _relabel(part: ImageDataset, new_label: np.ndarray[tuple[int], np.dtype[np.int64]], class_names: tuple[str, ...]) -> ImageDataset:
    labels = new_label[part.labels]
    rows = np.flatnonzero(labels >= 0)
    kept = part if len(rows) == len(part) else part.subset(rows)
    return ImageDataset(kept.images, labels[rows], class_names, kept.files, weights=kept.weights)

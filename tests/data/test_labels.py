"""Classes under new names."""

import dataclasses

import numpy as np
import pytest

from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.data.labels import regroup
from cifar_ray.errors import DataError


def test_images_get_the_names_of_their_groups(stripes: DatasetSplits) -> None:
    grouped = regroup(stripes, {"striped": ("horizontal", "vertical"), "plain": ("plain",)})
    assert grouped.train.class_names == ("striped", "plain")
    assert grouped.train.class_counts().tolist() == [160, 80]
    assert grouped.train.images is stripes.train.images
    assert grouped.fingerprint != stripes.fingerprint


def test_images_of_other_classes_are_left_out_and_the_rest_keep_their_files(stripes: DatasetSplits) -> None:
    train = dataclasses.replace(stripes.train, files=np.array([f"{row}.png".encode() for row in range(len(stripes.train))]))
    without = regroup(dataclasses.replace(stripes, train=train), {"h": ("horizontal",), "v": ("vertical",)})
    assert [len(part) for _, part in without] == [160, 40, 40]
    assert [without.train.name_of(row) for row in range(4)] == ["0.png", "1.png", "3.png", "4.png"]


def test_a_class_that_is_not_there_is_named(stripes: DatasetSplits) -> None:
    with pytest.raises(DataError, match=r"class 'spots' of \w+ not found\. Available: horizontal, vertical, plain"):
        regroup(stripes, {"a": ("spots",), "b": ("plain",)})

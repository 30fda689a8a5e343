"""Images as plain arrays: where they come from, how they are decoded, split and measured."""

from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.sources import load_splits
from cifar_ray.data.statistics import channel_mean_std

__all__ = ["DatasetSplits", "ImageDataset", "channel_mean_std", "load_splits"]

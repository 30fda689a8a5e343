"""Images as plain arrays: where they come from, how they are decoded, split and measured."""

from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.sources import load_splits, open_splits
from cifar_ray.data.statistics import channel_mean_std
from cifar_ray.data.streamed import StreamedImages, StreamedSplits

__all__ = ["DatasetSplits", "ImageDataset", "StreamedImages", "StreamedSplits", "channel_mean_std", "load_splits", "open_splits"]

"""Data sets as plain arrays: sources, decoding, splits and statistics."""

from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.sources import load_splits, open_splits
from cifar_ray.data.statistics import channel_mean_std
from cifar_ray.data.streamed import StreamedImages, StreamedSplits

__all__ = ["DatasetSplits", "ImageDataset", "StreamedImages", "StreamedSplits", "channel_mean_std", "load_splits", "open_splits"]

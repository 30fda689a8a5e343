"""Load data sets: `load_splits` into memory, `open_splits` for training, which may stream."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import socket
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cifar_ray.cluster.private import digits_of_sklearn
from cifar_ray.config import TrainConfig, parse_groups
from cifar_ray.data import dataset_cache as cache
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.decode import DECODER_VERSION, fit
from cifar_ray.data.folder import load_folder
from cifar_ray.data.labels import regroup, regroup_descriptions
from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.data.reading.local_cache import DOWNLOADS, cache_folder
from cifar_ray.data.reading.picture_source import parse_location
from cifar_ray.data.reviewed import with_reviews
from cifar_ray.data.splits import complete
from cifar_ray.data.streamed import TrainingSplits, load_streamed
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import DataError

_DEFAULT_IMAGE_SIZE_PX = 32

_NETWORK_TIMEOUT_S = 10.0
_logger = logging.getLogger(__name__)


def load_splits(config: TrainConfig, progress: StartTask = no_progress) -> DatasetSplits:
    """Load the data set of a config, with its validation split, test split and groups.

    Equal configs give equal splits in every process. Each node prepares them once and memory-maps them.

    Raises:
        DataError: if the data are missing, cannot be downloaded, or are unusable; the message says what to do.
    """
    splits = _divide(config, load_undivided(config, progress))
    return with_reviews(splits, config) if config.with_reviews else splits


def load_undivided(config: TrainConfig, progress: StartTask = no_progress) -> DatasetSplits:
    """Load all pictures of a data set with its own splits: no other split is drawn, and no picture or class is dropped.

    Raises:
        DataError: as `load_splits`.
    """
    size_px = config.image_size or _DEFAULT_IMAGE_SIZE_PX
    if config.dataset == "digits":
        return load_digits(size_px)
    if config.dataset == "folder":
        return load_folder(_place(config), size_px, config.square_policy, progress, config.columns, config.task)
    return load_cifar(config.dataset, _cifar_folder(config), size_px)


def open_splits(config: TrainConfig, progress: StartTask = no_progress) -> TrainingSplits:
    """Load splits as `load_splits` does, but stream the training images of a folder if they exceed the memory limit.

    Splits, labels and statistics are the same either way. A log message says when it streams.

    Raises:
        DataError: as `load_splits`.
    """
    if config.dataset != "folder" or config.stream == "never":
        return load_splits(config, progress)
    size_px = config.image_size or _DEFAULT_IMAGE_SIZE_PX
    listing = list_pictures(_place(config), config.columns, config.task)
    count = len(listing)
    needed = count * 3 * size_px**2 * config.max_workers
    allowed = config.data_memory_bytes or memory_bytes() // 4
    if config.stream == "auto" and needed <= allowed:
        return load_splits(config, progress)
    if config.with_reviews:
        raise DataError("--with-reviews: the data set is streamed, and reviewed pictures are not. Export them with cifar-ray review export")
    reason = "stream is always" if config.stream == "always" else f"data_memory is {allowed / 1e9:,.1f} GB"
    _logger.info("streaming: %s pictures of %d px need %.1f GB of memory on all workers, %s", f"{count:,}", size_px, needed / 1e9, reason)
    division = repr((config.val_fraction, config.test_fraction, config.seed_of_splits, config.groups))
    streamed = load_streamed(listing, size_px, config.square_policy, lambda found: _divide(config, found), division, progress)
    descriptions = listing.class_descriptions
    groups = parse_groups(config.groups) if config.groups else {name: [name] for name in descriptions}
    return replace(streamed, class_descriptions=regroup_descriptions(descriptions, groups))


def _divide(config: TrainConfig, found: DatasetSplits) -> DatasetSplits:
    splits = complete(found, config.val_fraction, config.test_fraction, config.seed_of_splits)
    return regroup(splits, parse_groups(config.groups)) if config.groups else splits


def _cifar_folder(config: TrainConfig) -> Path | None:
    if config.data_dir is not None and "://" in config.data_dir:
        raise DataError(f"--data-dir {config.data_dir}: {config.dataset} is read from a local folder; copy or mount it")
    return None if config.data_dir is None else Path(config.data_dir)


def _place(config: TrainConfig) -> Path | str:
    if config.data_dir is None:
        raise DataError("--dataset folder needs --data-dir DIR")
    return parse_location(config.data_dir)


def memory_bytes() -> int:
    """Memory of this machine, or the limit of its container."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no limit, or "max"
        return physical


def load_digits(size_px: int) -> DatasetSplits:
    """Load scikit-learn's 1,797 handwritten digits (8×8 px, 17 shades) as RGB images of `size_px`; all in `train`."""

    def build(allocate: cache.Allocate) -> DatasetSplits:
        rows = digits_of_sklearn()
        shades = np.round(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        images = allocate("train", len(shades), size_px)
        _fill(images, np.repeat(shades[..., None], 3, axis=-1))
        labels = rows[:, 64].astype(np.int64)
        return DatasetSplits("digits", ImageDataset(images, labels, tuple("0123456789")), None, None)

    return cache.load_or_build(f"digits-{size_px}px-v{DECODER_VERSION}", build)


def load_cifar(name: str, data_dir: Path | None, size_px: int) -> DatasetSplits:
    """Load CIFAR-10 or CIFAR-100 with its own test split; torchvision downloads and checks it on first use.

    Args:
        name: `cifar10` or `cifar100`.
        data_dir: folder of the archive or of its unpacked files; default: the downloads in the cache folder.
        size_px: side of the images.

    Raises:
        DataError: if the data set is missing and cannot be downloaded.
    """

    def build(allocate: cache.Allocate) -> DatasetSplits:
        parts: dict[str, ImageDataset] = {}
        for split, raw in _open_cifar(name, data_dir or cache_folder() / DOWNLOADS).items():
            images = allocate(split, len(raw.data), size_px)
            _fill(images, raw.data)
            parts[split] = ImageDataset(images, np.array(raw.targets, np.int64), tuple(raw.classes))
        return DatasetSplits(name, parts["train"], None, parts["test"])

    # torchvision checks the archive's checksum, so the name determines the pixels.
    return cache.load_or_build(f"{name}-{size_px}px-v{DECODER_VERSION}", build)


def _open_cifar(name: str, root: Path) -> dict[str, Any]:
    """Open torchvision's data sets by split; download them to `root` if they are missing."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    if root.name == source.base_folder:
        root = root.parent
    try:
        with network_timeout():
            return {"train": source(root, train=True, download=True), "test": source(root, train=False)}
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot load {name} from {root} or download it from {source.url} ({reason}). "
            f"Put {source.filename} into {root}, or train offline with --dataset digits"
        ) from None


@contextlib.contextmanager
def network_timeout() -> Iterator[None]:
    """Set a socket timeout for torchvision, which sets none: behind a silent firewall it would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _fill(target: npt.NDArray[np.uint8], images: npt.NDArray[np.uint8]) -> None:
    """Write square images `[N, H, H, 3]` into an array, resized if its size differs."""
    if images.shape == target.shape:
        target[:] = images
        return
    for row, image in enumerate(images):
        target[row] = fit(Image.fromarray(image), target.shape[1], "pad")

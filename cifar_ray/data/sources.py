"""Where data sets come from: `load_splits` is the way in, and `open_splits` for training."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cifar_ray.config import TrainConfig, parse_groups
from cifar_ray.data import cache
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.data.decode import DECODER_VERSION, fit
from cifar_ray.data.folder import list_folder, load_folder
from cifar_ray.data.labels import regroup
from cifar_ray.data.splits import complete
from cifar_ray.data.streamed import TrainingSplits, load_streamed
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import DataError

_DEFAULT_IMAGE_SIZE_PX = 32

_NETWORK_TIMEOUT_S = 10.0
_logger = logging.getLogger(__name__)


def load_splits(config: TrainConfig, progress: StartTask = no_progress) -> DatasetSplits:
    """Loads the data set that a config names, with the validation and test images and the groups that it asks for.

    Equal configs give equal splits in every process. They are prepared once a node and then memory-mapped.

    Raises:
        DataError: if the data are missing, cannot be had, or are unfit; the message says what to do.
    """
    size_px = config.image_size or _DEFAULT_IMAGE_SIZE_PX
    data_dir = _data_dir(config)
    if config.dataset == "digits":
        found = load_digits(size_px)
    elif config.dataset == "folder":
        found = load_folder(_folder(config), size_px, config.resize_policy, progress)
    else:
        found = load_cifar(config.dataset, data_dir, size_px)
    return _divide(config, found)


def open_splits(config: TrainConfig, progress: StartTask = no_progress) -> TrainingSplits:
    """As `load_splits`, but where decoded pictures of a folder need more than the memory allowed, training images stay in their files.

    The splits, their labels and statistics are the same either way. Says so where it streams.

    Raises:
        DataError: as `load_splits`.
    """
    if config.dataset != "folder" or config.stream == "never":
        return load_splits(config, progress)
    size_px = config.image_size or _DEFAULT_IMAGE_SIZE_PX
    listing = list_folder(_folder(config))
    count = sum(map(len, listing.files.values()))
    needed = count * 3 * size_px**2 * config.max_workers
    allowed = config.data_memory_bytes or memory_bytes() // 4
    if config.stream == "auto" and needed <= allowed:
        return load_splits(config, progress)
    reason = "as asked" if config.stream == "always" else f"more than the {allowed / 1e9:,.1f} GB of data_memory"
    _logger.info("streaming: %s pictures of %d px are %.1f GB decoded for all workers, %s", f"{count:,}", size_px, needed / 1e9, reason)
    division = repr((config.val_fraction, config.test_fraction, config.seed, config.groups))
    return load_streamed(listing, size_px, config.resize_policy, lambda found: _divide(config, found), division, progress)


def _divide(config: TrainConfig, found: DatasetSplits) -> DatasetSplits:
    splits = complete(found, config.val_fraction, config.test_fraction, config.seed)
    return regroup(splits, parse_groups(config.groups)) if config.groups else splits


def _data_dir(config: TrainConfig) -> Path | None:
    if config.data_dir is not None and "://" in config.data_dir:
        raise DataError(f"--data-dir {config.data_dir}: images are read from a local path; copy or mount them there")
    return None if config.data_dir is None else Path(config.data_dir)


def _folder(config: TrainConfig) -> Path:
    root = _data_dir(config)
    if root is None:
        raise DataError("--dataset folder needs --data-dir DIR")
    return root


def memory_bytes() -> int:
    """Memory of this machine, or what its container may use of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such limit, or "max"
        return physical


def load_digits(size_px: int) -> DatasetSplits:
    """scikit-learn's 1,797 handwritten digits of 8×8 px in 17 shades, as RGB of `size_px`; all in `train`."""

    def build(allocate: cache.Allocate) -> DatasetSplits:
        from sklearn.datasets import load_digits as load  # seconds, which workers save by the cache

        digits = load()
        shades = np.round(digits.images * (255 / 16)).astype(np.uint8)
        images = allocate("train", len(shades), size_px)
        _fill(images, np.repeat(shades[..., None], 3, axis=-1))
        labels = digits.target.astype(np.int64)
        return DatasetSplits("digits", ImageDataset(images, labels, tuple(map(str, digits.target_names))), None, None)

    return cache.load_or_build(f"digits-{size_px}px-v{DECODER_VERSION}", build)


def load_cifar(name: str, data_dir: Path | None, size_px: int) -> DatasetSplits:
    """CIFAR-10 or CIFAR-100 with its own test split, downloaded and checked by torchvision on first use.

    Args:
        name: `cifar10` or `cifar100`.
        data_dir: where the archive or its unpacked folder lies, or will; default: in the cache folder.
        size_px: side of the images.

    Raises:
        DataError: if it is not there and cannot be downloaded.
    """

    def build(allocate: cache.Allocate) -> DatasetSplits:
        parts: dict[str, ImageDataset] = {}
        for split, raw in _open_cifar(name, data_dir or cache.cache_folder() / "downloads").items():
            images = allocate(split, len(raw.data), size_px)
            _fill(images, raw.data)
            parts[split] = ImageDataset(images, np.array(raw.targets, np.int64), tuple(raw.classes))
        return DatasetSplits(name, parts["train"], None, parts["test"])

    # The archive's checksum is part of torchvision, so the pixels follow from the name.
    return cache.load_or_build(f"{name}-{size_px}px-v{DECODER_VERSION}", build)


def _open_cifar(name: str, root: Path) -> dict[str, Any]:
    """The data sets of torchvision by split, from `root` or downloaded to it."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    if root.name == source.base_folder:
        root = root.parent
    try:
        with impatient_network():
            return {"train": source(root, train=True, download=True), "test": source(root, train=False)}
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name}: could not be loaded from {root} or downloaded from {source.url} ({reason}); "
            f"put {source.filename} into {root}, or train without a network with --dataset digits"
        ) from None


@contextlib.contextmanager
def impatient_network() -> Iterator[None]:
    """Gives the sockets of torchvision a timeout; it sets none, and behind a silent firewall it would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _fill(target: npt.NDArray[np.uint8], images: npt.NDArray[np.uint8]) -> None:
    """Writes square images `[N, H, H, 3]` into an array that may be of another size."""
    if images.shape == target.shape:
        target[:] = images
        return
    for row, image in enumerate(images):
        target[row] = fit(Image.fromarray(image), target.shape[1], "pad")

"""`python -m cifar_ray.quantize`: adds the int8 form of a network to a model, for CPUs; the new version is not promoted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import numpy as np
from pydantic import Field
from tyro.conf import Positional

from cifar_ray import cli
from cifar_ray.config import STORAGE_VARIABLE, Config, TrainConfig, default_storage, parse_config
from cifar_ray.data import load_splits
from cifar_ray.errors import ConfigError
from cifar_ray.store import ModelStore

PROG = "python -m cifar_ray.quantize"


class QuantizeCommand(Config):
    """Adds the int8 form of its network to a model: some CPUs run that several times as fast.

    Ranges are taken from training images, what it costs is measured on all validation and test images, and a new version is kept if it
    costs no more than allowed. Servers take it where they measure it faster.
    """

    model: Positional[str] = Field(description="NAME, NAME@3 or NAME@production")
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default ${STORAGE_VARIABLE} or ./storage")
    data_dir: str | None = Field(None, description="where its images are now; default: where they were in training")
    tolerance_points: float = Field(0.2, ge=0, le=100, description="accuracy may fall by so many percentage points")
    calibration_images: int = Field(640, ge=1, description="training images to take ranges from")
    seed: int = Field(0, ge=0, description="draws them")


def main(argv: Sequence[str] | None = None) -> int:
    """Quantizes as the flags say; the command line's own where `argv` is `None`."""
    command: QuantizeCommand = cli.parse(QuantizeCommand, argv, PROG)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # decoding
    store = ModelStore(command.storage)
    bundle = store.load(command.model)
    moved = {"data_dir": command.data_dir} if command.data_dir else {}
    splits = load_splits(parse_config(TrainConfig, bundle.manifest.train_config | moved))
    if splits.fingerprint != bundle.manifest.dataset_fingerprint:
        raise ConfigError(
            f"the images of {splits.name} are not those that {bundle.reference} was trained on; --data-dir says where they are"
        )
    held_out = {name: part for name, part in splits if name != "train"}
    if not held_out:
        raise ConfigError(f"{splits.name} has neither validation nor test images to measure on")

    from cifar_ray.inference.int8 import with_int8

    count = min(command.calibration_images, len(splits.train))
    chosen = np.sort(np.random.default_rng(command.seed).choice(len(splits.train), count, replace=False))
    made = with_int8(bundle, splits.train.images[chosen], held_out, command.tolerance_points / 100)
    kept = store.save(bundle.name, made.manifest, made.weights, made.attachments)
    record = made.manifest.quantization
    assert record is not None  # noqa: S101
    print(f"accuracy  int8 {record.accuracy:.2%}, fp32 {record.reference_accuracy:.2%} ({record.measured_on})")
    print(f"kept   {kept.reference}: {bundle.reference} with its int8 form; python -m cifar_ray.store promote {kept.reference}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

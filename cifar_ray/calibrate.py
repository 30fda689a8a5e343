"""`python -m cifar_ray.calibrate`: fits a kept model's temperature and abstain threshold; the new version is not promoted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from pydantic import Field
from tyro.conf import Positional

from cifar_ray import cli
from cifar_ray.config import STORAGE_VARIABLE, Config, DatasetName, default_storage
from cifar_ray.store import ModelStore

PROG = "python -m cifar_ray.calibrate"


class CalibrateCommand(Config):
    """Makes a model's probabilities honest, and lets it say when a picture is unlike those it knows, without training.

    Training does so by itself; this is for models kept before it did, imported ones and ensembles. Both are fitted on validation images,
    and test images, where there are some, say what it brought. A new version is kept, with the same weights.
    """

    model: Positional[str] = Field(description="NAME, NAME@3 or NAME@production")
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default ${STORAGE_VARIABLE} or ./storage")
    dataset: DatasetName | None = Field(None, description="default: what the model was trained on, split as then")
    data_dir: str | None = Field(None, description="folder: DIR/<class>/… or DIR/train/<class>/… with val/; cifar: where the files lie")


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrates as the flags say; the command line's own where `argv` is `None`."""
    command: CalibrateCommand = cli.parse(CalibrateCommand, argv, PROG)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # decoding

    from cifar_ray.evaluation.new_versions import calibrated  # torch: seconds that --help does without

    store = ModelStore(command.storage)
    bundle = store.load(command.model)
    made, trust, figures = calibrated(bundle, command.dataset, command.data_dir)
    kept = store.save(bundle.name, made.manifest, made.weights, made.attachments)
    print(f"trust  {trust.describe(figures)}")
    print(f"kept   {kept.reference}: {bundle.reference}, calibrated; python -m cifar_ray.store promote {kept.reference}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))

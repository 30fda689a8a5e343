"""`python -m cifar_ray.stats`: what a data set holds, what is wrong with it, and what a network would see of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cifar_ray import cli
from cifar_ray.cli.bars import Bars
from cifar_ray.config import (
    STORAGE_VARIABLE,
    AugmentationConfig,
    Config,
    DatasetName,
    ResizePolicy,
    TrainConfig,
    default_storage,
    parse_config,
)
from cifar_ray.data import DatasetSplits, load_splits
from cifar_ray.data.folder import Listing, list_folder
from cifar_ray.errors import DataError
from cifar_ray.recipes import default_recipe, get_recipe

PROG = "python -m cifar_ray.stats"

_NOT_OF_THE_DATA = {"recipe", "augmentation", "storage", "out", "duplicates"}


class StatsCommand(Config):
    """Counts classes and files, finds broken ones and duplicates, and draws contact sheets; images are split as training would."""

    dataset: DatasetName | None = Field(None, description="default: folder where --data-dir is given, else cifar10")
    data_dir: str | None = Field(None, description="folder: DIR/train/<class>/… with optional val/ and test/, or DIR/<class>/…")
    image_size: int | None = Field(None, ge=8, le=1024, description="side of the square images, px; default 32")
    resize_policy: ResizePolicy = Field("pad", description="keep the aspect ratio by padding or by cropping")
    val_fraction: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    test_fraction: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    seed: int = Field(0, ge=0, le=2**31 - 1)
    recipe: str | None = Field(None, description="whose augmentation is shown; default as `train` would choose it")
    augmentation: AugmentationConfig = AugmentationConfig()
    duplicates: bool = Field(True, description="compare all images with each other; two minutes for 60,000 on two cores")
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default ${STORAGE_VARIABLE} or ./storage")
    out: str | None = Field(None, description="folder for stats.html, stats.json and pictures; default <storage>/stats/NAME")


def main(argv: Sequence[str] | None = None) -> int:
    """Examines the data set that the flags name; the command line's own where `argv` is `None`."""
    chosen = cli.peek(argv, ("--recipe", "--dataset"))
    recipe = get_recipe(chosen.get("recipe") or default_recipe(chosen.get("dataset"), None))
    command: StatsCommand = cli.parse(StatsCommand, argv, PROG, StatsCommand(augmentation=recipe.augmentation))
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from cifar_ray.evaluation.dataset_examination import examine, summarize, to_json  # torch: seconds that --help does without
    from cifar_ray.reports.dataset_report import to_files

    values = command.model_dump(exclude=_NOT_OF_THE_DATA)
    values["dataset"] = command.dataset or ("folder" if command.data_dir is not None else "cifar10")
    config = parse_config(TrainConfig, values)
    is_local_folder = config.dataset == "folder" and config.data_dir is not None and "://" not in config.data_dir
    listing = list_folder(Path(config.data_dir)) if is_local_folder and config.data_dir is not None else None
    with Bars() as bars:
        splits = _load(config, listing, bars)
        examination = examine(splits, listing, bars.start, look_for_duplicates=command.duplicates)
    folder = cli.output_folder(command.out, command.storage, f"stats/{splits.name}")
    for name, content in to_files(examination, command.augmentation, command.seed).items():
        folder.replace(name, content)
    print("\n".join(f"{name:12} {text}" for name, text in summarize(to_json(examination))))
    print(f"{'report':12} {folder.path('stats.html')}")
    return 0


def _load(config: TrainConfig, listing: Listing | None, bars: Bars) -> DatasetSplits:
    """The splits; where training would refuse the folder, every broken file is told first."""
    from cifar_ray.evaluation.dataset_examination import list_broken

    try:
        return load_splits(config)
    except DataError:
        for file in list_broken(listing, bars.start) if listing is not None else ():
            print(f"{'broken':12} {file.path}: {file.reason}")
        raise


if __name__ == "__main__":
    sys.exit(cli.run(main))

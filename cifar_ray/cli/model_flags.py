"""Flags of the verbs that work on models and data sets, and do not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro
from pydantic import Field
from tyro.conf import Positional

from cifar_ray.cli.arguments.parsing import parse, peek
from cifar_ray.config import (
    STORAGE_VARIABLE,
    AugmentationConfig,
    Config,
    DatasetName,
    EngineName,
    PrecisionName,
    ResizePolicy,
    TrainConfig,
    default_storage,
    parse_config,
    resolve_storage,
)
from cifar_ray.config.data_choice import DataChoice
from cifar_ray.errors import ConfigError
from cifar_ray.inference.batch.prediction_job import PredictionJob
from cifar_ray.recipes import default_recipe, get_recipe
from cifar_ray.training.suited_settings import choose_settings

_MODEL = "NAME, NAME@3, the name of a run, or the path of a bundle or a run"
_STORED_MODEL = "NAME, NAME@3 or NAME@production"
_STORAGE = f"path or URI; default: ${STORAGE_VARIABLE} or ./storage"
_ENGINE = "inference engine; auto: the one that a server would choose"
_AS_TRAIN = ("dataset", "resize_policy", "val_fraction", "test_fraction")
_PRECISION = "number format; auto: bf16 if the hardware has it, else fp16 on a GPU, else fp32"
_STATS_ONLY = {"folder", "recipe", "augmentation", "storage", "out", "duplicates"}


class EvaluateCommand(DataChoice):
    """Evaluate a model: accuracy, classes, bias, calibration, mistakes, slices, robustness, leakage and cost."""

    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")] = Field(description=_MODEL)
    storage: str = Field(default_factory=default_storage, description=_STORAGE)
    out: str | None = Field(None, description="folder for report.html, evaluation.json and pictures; default: <storage>/evaluations/…")
    robustness_images: int | None = Field(
        None, ge=0, description="images to corrupt in 60 ways; 0: skip this test; default: 2,000 of 32 px, as many pixels of larger ones"
    )
    leakage: bool = Field(True, description="search for near-duplicates of training images")
    attach: bool = Field(False, description="also save a version of the model whose mistakes and confusion matrix the server's page shows")
    engine: EngineName = Field("torch", description=_ENGINE)
    precision: PrecisionName = Field("auto", description=_PRECISION)
    num_workers: int | None = Field(None, ge=1, le=4096, description="number of workers on a Ray cluster; default: this process only")


class CompareCommand(DataChoice):
    """Compare two models on the same images, by default the test images of the first model's training."""

    first: Annotated[Positional[str], tyro.conf.arg(metavar="A")] = Field(description=_MODEL)
    second: Annotated[Positional[str], tyro.conf.arg(metavar="B")] = Field(description="the model to compare with (same forms)")
    storage: str = Field(default_factory=default_storage, description=_STORAGE)
    out: str | None = Field(None, description="folder for comparison.html, comparison.json and pictures; default: <storage>/comparisons/…")
    engine: EngineName = Field("torch", description=_ENGINE)
    precision: PrecisionName = Field("auto", description=_PRECISION)


class CalibrateCommand(Config):
    """Calibrate a model that was saved without calibration: fit its temperature and its abstain threshold.

    Training does this by itself. Calibrate is for older models, imported models and ensembles. It fits both values on validation
    images, measures them on test images if there are any, and saves a new version with the same weights.
    """

    model: Positional[str] = Field(description=_STORED_MODEL)
    storage: str = Field(default_factory=default_storage, description=_STORAGE)
    dataset: DatasetName | None = Field(None, description="default: the data set and the splits of the model's training")
    data_dir: str | None = Field(None, description="folder: DIR/<class>/… or DIR/train/<class>/… with val/; cifar: where the files are")
    min_precision: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="multi-label: precision that each label must reach on validation; default: as in the training"
    )


class QuantizeCommand(Config):
    """Add the int8 form of its network to a model. Some CPUs run it several times as fast.

    Training images set the quantization ranges, and all validation and test images measure the loss of accuracy. A new version is
    saved if the loss is within the tolerance. Servers use the int8 form where they measure that it is faster.
    """

    model: Positional[str] = Field(description=_STORED_MODEL)
    storage: str = Field(default_factory=default_storage, description=_STORAGE)
    data_dir: str | None = Field(None, description="where the images of the training are now; default: where they were then")
    tolerance_points: float = Field(0.2, ge=0, le=100, description="maximum loss of accuracy, percentage points")
    calibration_images: int = Field(640, ge=1, description="number of training images that set the quantization ranges")
    seed: int = Field(0, ge=0, description="seed of the choice of these images")


class PredictCommand(Config):
    """Predict the classes of pictures. A broken picture becomes a row with an error and does not stop the job.

    With --out all rows go to a file, and the same command resumes an interrupted job.
    """

    model: Positional[str] = Field(
        description="NAME, NAME@3, a run, a path, or http://HOST:PORT of a running server (?model=NAME; its API key: $CIFAR_RAY_API_KEY)"
    )
    pictures: Positional[tuple[str, ...]] = Field(description="files, folders, globs, URIs, or - for paths on stdin")
    out: str | None = Field(None, description="path or URI of the table: .csv, .json or .parquet")
    top_k: int = Field(5, ge=1, description="number of classes per picture, most likely first")
    abstain: bool = Field(True, description="abstain from pictures that are unlike the model's validation images")
    explain: str | None = Field(None, description="folder for a Grad-CAM overlay of each picture")
    num_workers: int | None = Field(None, ge=1, le=4096, description="number of Ray Data workers; default: this process only")
    part_size: int = Field(2000, ge=1, description="pictures per part; an interruption loses at most one part per worker")
    precision: PrecisionName = Field("auto", description=_PRECISION)
    engine: EngineName = Field("auto", description=_ENGINE)
    storage: str = Field(default_factory=default_storage, description=_STORAGE)

    def job(self) -> PredictionJob:
        """The job that the flags describe.

        Raises:
            ConfigError: if flags exclude each other.
        """
        if not self.pictures:
            raise ConfigError("no pictures given; expected: cifar-ray predict MODEL PICTURES …")
        job = PredictionJob(
            model=self.model,
            storage=resolve_storage(self.storage),
            out=self.out,
            top_k=self.top_k,
            abstain=self.abstain,
            explain_dir=None if self.explain is None else resolve_storage(self.explain),
            num_workers=self.num_workers,
            part_size=self.part_size,
            precision=self.precision,
            engine=self.engine,
        )
        if job.uses_server and (self.num_workers or self.explain):
            raise ConfigError("--num-workers and --explain need a model of the store or a path, not a server")
        if self.num_workers and self.out is None:
            raise ConfigError("--num-workers needs --out: a file that all workers can write to")
        return job


class StatsCommand(Config):
    """Count classes and files, find broken files and duplicates, give advice before a training, and draw contact sheets.

    Images are split as in training.
    """

    folder: Annotated[Positional[str | None], tyro.conf.arg(metavar="DIR")] = Field(None, description="short for --data-dir DIR")
    dataset: DatasetName | None = Field(None, description="default: folder if a folder is given, else cifar10")
    data_dir: str | None = Field(None, description="folder: DIR/train/<class>/… with optional val/ and test/, or DIR/<class>/…; or a table")
    columns: str | None = Field(None, description="columns of a table, as in image=path,label=species; default: found by their names")
    image_size: int | None = Field(None, ge=8, le=1024, description="side of the square images, px; default: 32")
    resize_policy: ResizePolicy | None = Field(
        None,
        description="how other shapes become square. pad: add black borders; crop: keep the centre; squash: stretch; default: as train",
    )
    val_fraction: Annotated[float | None, Field(ge=0, le=0.9)] = Field(None, description="default: as train")
    test_fraction: Annotated[float | None, Field(ge=0, le=0.9)] = Field(None, description="default: as train")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the splits and of the augmentation shown")
    recipe: str | None = Field(None, description="recipe whose augmentation is shown; default: the one that train would choose")
    augmentation: AugmentationConfig = AugmentationConfig()
    duplicates: bool = Field(True, description="compare all images with each other; 2 minutes for 60,000 images on 2 cores")
    storage: str = Field(default_factory=default_storage, description=_STORAGE)
    out: str | None = Field(None, description="folder for stats.html, stats.json and pictures; default: <storage>/stats/NAME")

    def train_config(self) -> tuple[TrainConfig, str]:
        """The config of a training on this data set, and the reason why `train` would choose it.

        Raises:
            ConfigError: if flags exclude each other.
            DataError: see `choose_settings`.
        """
        values = self.model_dump(exclude=_STATS_ONLY, exclude_none=True)
        if self.folder is not None:
            if self.data_dir is not None or self.dataset not in (None, "folder"):
                raise ConfigError(f"{self.folder}: give a folder, or --dataset and --data-dir, not both")
            values["data_dir"] = self.folder
        suited = choose_settings(values)
        chosen = {name: value for name, value in suited.settings.items() if name in _AS_TRAIN}
        return parse_config(TrainConfig, chosen | values), suited.why


def parse_stats_command(argv: Sequence[str] | None, prog: str) -> StatsCommand:
    """Parse the flags of `stats`; the recipe supplies the defaults of the augmentation.

    Raises:
        ConfigError: if a flag is unknown or invalid; the message is one line that names the flag.
    """
    chosen = peek(argv, ("--recipe", "--dataset"))
    recipe = get_recipe(chosen.get("recipe") or default_recipe(chosen.get("dataset"), None))
    command: StatsCommand = parse(StatsCommand, argv, prog, StatsCommand(augmentation=recipe.augmentation))
    return command

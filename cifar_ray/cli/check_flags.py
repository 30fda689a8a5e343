"""Flags of `check_labels`."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import tyro
from pydantic import Field
from tyro.conf import Positional

from cifar_ray.config import STORAGE_VARIABLE, Config, TrainConfig, default_storage, local_path, parse_config, resolve_storage
from cifar_ray.errors import ConfigError
from cifar_ray.recipes import get_recipe
from cifar_ray.training.suited_settings import choose_settings, find_dataset

_SMALL_PX = 32
_CORRECTED = "corrected_labels.csv"
_DATASETS = ("cifar10", "cifar100", "digits")


class CheckLabelsCommand(Config):
    """Find labels that are probably wrong, near-duplicates with different labels, and pictures unlike their class.

    A linear head on features of a pretrained network predicts the label of each picture without having seen it. The report shows the
    suspicious pictures; decide there, download the decisions, and --apply them to write a corrected table. No picture is moved.
    """

    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")] = Field(
        description="folder of classes or a table, as in train --data-dir; or cifar10, cifar100, digits"
    )
    model: Annotated[Positional[str | None], tyro.conf.arg(metavar="MODEL")] = Field(
        None, description="model whose features are used, not trained on these pictures; default: the pretrained network for photographs"
    )
    data_dir: str | None = Field(None, description="folder of the files of cifar10 or cifar100")
    columns: str | None = Field(None, description="columns of a table, as in image=path,label=species; default: found by their names")
    apply: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = Field(
        None, description="decisions.csv from the report: write the corrected table of labels"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the folds")
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default: ${STORAGE_VARIABLE} or ./storage")
    out: str | None = Field(
        None, description=f"folder of the report; default: <storage>/label_checks/NAME. With --apply: the table; default: DATA/{_CORRECTED}"
    )

    def train_config(self) -> TrainConfig:
        """The config of a probe on these pictures.

        Raises:
            ConfigError, DataError: if the pictures do not exist, see `choose_settings`.
        """
        values: dict[str, Any] = get_recipe("photos").model_dump() | {"method": "probe", "val_fraction": 0.0, "test_fraction": 0.0}
        values |= {"seed": self.seed, "dataset": self._dataset, "data_dir": self._place, "image_size": _SMALL_PX}
        if self._dataset == "folder":
            suited = choose_settings({"data_dir": self._place, "columns": self.columns}).settings
            values |= {"columns": self.columns, "image_size": suited.get("image_size") or _SMALL_PX}
        return parse_config(TrainConfig, values)

    def corrected_table(self) -> str:
        """Path of the table that `--apply` writes.

        Raises:
            ConfigError: if the pictures are not files.
        """
        if self._dataset != "folder":
            raise ConfigError(f"--apply: {self.data} has no files that a table could name; it is for folders and tables of pictures")
        place = local_path(self.data)
        folder = place if place.is_dir() else place.parent
        return resolve_storage(self.out or str(folder / _CORRECTED))

    def next_command(self) -> str:
        """The command that applies the decisions; empty if a table cannot name the pictures."""
        from cifar_ray.data.listing.tables import list_pictures
        from cifar_ray.data.reading.picture_source import parse_location

        if self._dataset == "folder":
            listing = list_pictures(parse_location(resolve_storage(self.data)), self.columns)
            if isinstance(listing.root, str) or listing.pictures.spans is not None:
                return ""
        flags = f" --columns {shlex.quote(self.columns)}" if self.columns else ""
        return f"cifar-ray check_labels {shlex.quote(self.data)}{flags} --apply decisions.csv" if self._dataset == "folder" else ""

    @property
    def _dataset(self) -> str:
        return self.data if self.data in _DATASETS else find_dataset(self.data)

    @property
    def _place(self) -> str | None:
        return self.data_dir if self.data in _DATASETS else self.data

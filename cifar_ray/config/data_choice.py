"""The choice of images for the evaluation of a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cifar_ray.config.base import Config, DatasetName

SplitName = Literal["test", "val", "train", "all"]


class DataChoice(Config):
    """Flags that select the images."""

    dataset: DatasetName | None = Field(None, description="data set; default: the training data of the model, with the same splits")
    data_dir: str | None = Field(
        None,
        description="folder of images: DIR/<class>/… or DIR/train/<class>/… with val/ and test/; a table of paths and labels; "
        "cifar10, cifar100: folder of the files",
    )
    columns: str | None = Field(None, description="columns of a table, as in image=path,label=species; default: found by their names")
    split: SplitName = Field(
        "test", description="split to use, val if there is no test split; all: every image, for data that the model was not trained on"
    )

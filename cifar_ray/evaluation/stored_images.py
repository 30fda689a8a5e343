"""Examines the data set that a config names, as training would load it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits
from cifar_ray.data.folder import list_folder
from cifar_ray.data.survey import BrokenFile
from cifar_ray.data.task_progress import StartTask
from cifar_ray.errors import DataError
from cifar_ray.evaluation.dataset_examination import DatasetExamination, examine, list_broken


def examine_stored(
    config: TrainConfig, progress: StartTask, *, look_for_duplicates: bool, on_broken: Callable[[BrokenFile], None]
) -> DatasetExamination:
    """Loads and examines a data set.

    Args:
        config: of a training on it.
        progress: starts a bar for each task.
        look_for_duplicates: takes minutes for 50,000 images.
        on_broken: takes each broken file of a folder that training rejects, before the error is raised.

    Raises:
        DataError: if the data are missing, or training rejects them.
    """
    is_local_folder = config.dataset == "folder" and config.data_dir is not None and "://" not in config.data_dir
    listing = list_folder(Path(config.data_dir)) if is_local_folder and config.data_dir is not None else None
    try:
        splits = load_splits(config, progress)
    except DataError:
        for file in list_broken(listing, progress) if listing is not None else ():
            on_broken(file)
        raise
    return examine(splits, listing, progress, look_for_duplicates=look_for_duplicates)

"""Check the labels of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig
from cifar_ray.data.sources import load_undivided
from cifar_ray.data.task_progress import StartTask
from cifar_ray.errors import DataError
from cifar_ray.evaluation.label_check.labelled_pictures import LabelledPictures
from cifar_ray.evaluation.label_check.out_of_fold import predict_out_of_fold
from cifar_ray.evaluation.label_check.suspects import Suspect, find_suspects
from cifar_ray.evaluation.scoring import device_here
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import load_model

_SMALL_PX, _ENLARGED_PX = 64, 224  # small pictures are enlarged to the size on which the network for photographs was trained


@dataclass(frozen=True, eq=False)
class CheckedLabels:
    """The labels of a data set and the suspicious ones.

    Attributes:
        pictures: all pictures.
        suspects: suspicious pictures, the most suspicious first.
        accuracy: fraction of the labels that cross-validation predicts, 0–1.
    """

    pictures: LabelledPictures
    suspects: list[Suspect]
    accuracy: float


def check_labels(config: TrainConfig, reference: str | None, storage: str, progress: StartTask) -> CheckedLabels:
    """Find labels that are probably wrong.

    Args:
        config: config of a probe on the data set.
        reference: a model whose features are used, see `load_model`; `None` for the pretrained network of the config.
        storage: storage in which the model is looked up.
        progress: receives the progress.

    Raises:
        ConfigError, DataError, StoreError, ResourceError: see `load_undivided`, `load_model` and `predict_out_of_fold`; also a `DataError`
            if pictures have several labels.
        MissingDependencyError: if cleanlab is not installed.
    """
    prepare_process()
    predictor = None if reference is None else Predictor(load_model(reference, storage), device_here())
    if predictor is not None:
        config = config.model_copy(update={"image_size": predictor.manifest.image_size_px})
    splits = load_undivided(config, progress)
    if splits.train.is_multi_label:
        raise DataError(f"{config.data_dir}: several labels for each picture; check_labels is for tables with one label in each row")
    stored_px = splits.train.image_size_px
    size_px = _ENLARGED_PX if predictor is None and stored_px <= _SMALL_PX else stored_px
    pictures = LabelledPictures(splits, size_px)
    predicted = predict_out_of_fold(pictures, config.model_copy(update={"image_size": size_px}), predictor, progress)
    accuracy = float((predicted.probabilities.argmax(axis=1) == pictures.labels).mean())
    return CheckedLabels(pictures, find_suspects(pictures, predicted, progress), accuracy)

"""Load the models and images that a user names, and examine them: the work of evaluate, compare, calibrate and stats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import DatasetName, EngineName, PrecisionName, TrainConfig
from cifar_ray.config.data_choice import DataChoice
from cifar_ray.data import load_splits
from cifar_ray.data.listing.tables import list_pictures
from cifar_ray.data.reading.picture_source import parse_location
from cifar_ray.data.survey.picture_facts import BrokenFile
from cifar_ray.data.task_progress import StartTask
from cifar_ray.errors import ConfigError, DataError
from cifar_ray.evaluation.comparison import AnyComparison, compare_models
from cifar_ray.evaluation.contender import Contender
from cifar_ray.evaluation.dataset_examination import DatasetExamination, examine, list_broken
from cifar_ray.evaluation.figures import AnyEvaluation
from cifar_ray.evaluation.label_set_evaluation import LabelSetEvaluation, evaluate_label_set_model
from cifar_ray.evaluation.model_evaluation import corruption_stride, evaluate_model, score_here
from cifar_ray.evaluation.new_versions import calibrated, same_trust, with_gallery
from cifar_ray.evaluation.scoring import count_predictions, device_here
from cifar_ray.evaluation.selection import load_selected, select
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import Bundle, ModelStore, load_model

_CORRUPTED_PIXELS, _LEAST_CORRUPTED = 2000 * 32 * 32, 40  # about a minute for photographs on two CPU cores


@dataclass(frozen=True, eq=False)
class ExaminedModel:
    """A model and its evaluation.

    Attributes:
        bundle: the model.
        predictor: the loaded model.
        evaluation: all figures.
    """

    bundle: Bundle
    predictor: Predictor
    evaluation: AnyEvaluation


def evaluate_stored(
    reference: str,
    storage: str,
    choice: DataChoice,
    progress: StartTask,
    *,
    precision: PrecisionName = "auto",
    engine: EngineName = "torch",
    robustness_images: int | None = None,
    look_for_leakage: bool = True,
    num_workers: int | None = None,
) -> ExaminedModel:
    """Evaluate a model, in this process or on workers of a Ray cluster.

    Args:
        reference: see `load_model`.
        storage: storage in which the model is looked up.
        choice: the data set and split to evaluate on.
        progress: starts a progress bar for each task.
        precision: see `Predictor`.
        engine: see `Predictor`.
        robustness_images: number of images to corrupt; 0 for none; `None` for 2,000 images of 32 px, or fewer larger images with the same
            number of pixels, but at least 40.
        look_for_leakage: search the training images for near-duplicates.
        num_workers: number of workers on Ray; `None` for this process.

    Raises:
        ConfigError: if the model does not name its training data and no data were chosen.
        DataError: if the data are missing, or have classes that the model lacks.
        StoreError: if there is no such model.
        ResourceError: if the cluster cannot hold the workers.
    """
    prepare_process()
    bundle = load_model(reference, storage)
    data = select(bundle.manifest, choice, progress)
    predictor = Predictor(bundle, device_here(), precision, engine)
    if robustness_images is None:
        robustness_images = max(_LEAST_CORRUPTED, _CORRUPTED_PIXELS // data.images.image_size_px**2)
    # with several labels per image there is no single prediction that is right or wrong under a corruption
    every = None if data.images.is_multi_label else corruption_stride(len(data.images), robustness_images)
    advance = progress("evaluating, also on corrupted copies" if every else "evaluating", count_predictions(len(data.images), every))
    if num_workers is None:
        scores = score_here(predictor, data.images, every, advance)
    else:
        from cifar_ray.evaluation.scoring_on_ray import score_on_ray  # imports Ray

        scores = score_on_ray(bundle, data, every, advance, num_workers=num_workers, precision=precision, engine=engine)
    evaluate = evaluate_label_set_model if data.images.is_multi_label else evaluate_model
    evaluation = evaluate(predictor, bundle.reference, data, scores, progress, look_for_leakage=look_for_leakage)
    return ExaminedModel(bundle, predictor, evaluation)


def save_with_gallery(examined: ExaminedModel, storage: str) -> Bundle:
    """Save a new version of a model with its mistakes and confusion matrix, which the server's page shows.

    Raises:
        ConfigError: if the model gives several labels per picture.
        StoreError: if the store cannot be written.
    """
    if isinstance(examined.evaluation, LabelSetEvaluation):
        raise ConfigError(f"--attach: {examined.bundle.reference} gives several labels per picture; the gallery shows one class for each")
    made = with_gallery(examined.bundle, examined.evaluation)
    return ModelStore(storage).save(made.name, made.manifest, made.weights, made.attachments)


def compare_stored(
    references: tuple[str, str],
    storage: str,
    choice: DataChoice,
    progress: StartTask,
    *,
    precision: PrecisionName = "auto",
    engine: EngineName = "torch",
) -> AnyComparison:
    """Compare two models on the same images, by default the data of the first. Arguments and errors are those of `evaluate_stored`."""
    prepare_process()
    bundles = [load_model(reference, storage) for reference in references]
    data = select(bundles[0].manifest, choice, progress)
    selected = (data, load_selected(bundles[1].manifest, data.config, choice.split, progress))
    first, second = (
        Contender(bundle.reference, Predictor(bundle, device_here(), precision, engine), images)
        for bundle, images in zip(bundles, selected, strict=True)
    )
    return compare_models(first, second, progress)


def calibrate_stored(
    store: ModelStore,
    reference: str,
    progress: StartTask,
    dataset: DatasetName | None = None,
    data_dir: str | None = None,
    min_precision: float | None = None,
) -> tuple[Bundle, Bundle | None, str]:
    """Fit the calibration of a model on validation images, and save a new version with it if it differs.

    Args:
        store: store of the model.
        reference: `name`, `name@3` or `name@production`.
        progress: starts a progress bar for each task.
        dataset: the data set; `None` for the training data of the model.
        data_dir: folder or table of the data.
        min_precision: for several labels per picture, see `fit_rules`.

    Returns:
        The unchanged model; the new version, or `None` if it would be the same; and one line about the fitted calibration.

    Raises:
        ConfigError, DataError, StoreError, BundleError: see `calibrated`.
    """
    prepare_process()
    bundle = store.load(reference)
    made, trust, figures = calibrated(bundle, dataset, data_dir, progress, min_precision)
    if same_trust(bundle, made):
        return bundle, None, trust.describe(figures)
    return bundle, store.save(bundle.name, made.manifest, made.weights, made.attachments), trust.describe(figures)


def examine_dataset(
    config: TrainConfig, progress: StartTask, *, look_for_duplicates: bool, on_broken: Callable[[BrokenFile], None]
) -> DatasetExamination:
    """Load and examine a data set.

    Args:
        config: config of a training on the data set.
        progress: starts a progress bar for each task.
        look_for_duplicates: whether to search for near-duplicates, which takes minutes for 50,000 images.
        on_broken: if training would reject the folder, receives each unreadable file before the error is raised.

    Raises:
        DataError: if the data are missing, or training rejects them.
    """
    is_folder = config.dataset == "folder" and config.data_dir is not None
    listing = list_pictures(parse_location(str(config.data_dir)), config.columns, config.task) if is_folder else None
    try:
        splits = load_splits(config, progress)
    except DataError:
        for file in list_broken(listing, progress) if listing is not None else ():
            on_broken(file)
        raise
    return examine(splits, listing, progress, look_for_duplicates=look_for_duplicates)

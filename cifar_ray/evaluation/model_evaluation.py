"""Evaluate one model on one split: accuracy, calibration, bias, slices, robustness, leakage and cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cifar_ray.data import ImageDataset
from cifar_ray.evaluation.measures.corruptions import CORRUPTIONS, LEVELS
from cifar_ray.evaluation.measures.cost import Cost, measure_cost
from cifar_ray.evaluation.measures.leakage import Duplicate, find_duplicates
from cifar_ray.evaluation.measures.slices import Slice, properties, slice_by
from cifar_ray.evaluation.scoring import BLOCK, BlockScores, OnProgress, count_blocks, embed_all, score_block
from cifar_ray.evaluation.selection import Selected
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.accuracy import Evaluation, evaluate_logits, softmax
from cifar_ray.metrics.calibration import Calibration, calibrate
from cifar_ray.metrics.intervals import ClassBias, prediction_bias
from cifar_ray.store import Manifest

# Starts a progress display: (task, number of images) → a function that takes the number of newly finished images.
Progress = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True, eq=False)
class Robustness:
    """Accuracy on corrupted images.

    Attributes:
        count: number of corrupted images, the same for each type and severity.
        clean_correct: number of correct predictions for these images without corruption.
        correct: int64 `[types, 5]`, number of correct predictions by type, in the order of `CORRUPTIONS`, and severity.
    """

    count: int
    clean_correct: int
    correct: npt.NDArray[np.int64]

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over all types and severities, 0–1."""
        return float(self.correct.mean() / max(1, self.count))


@dataclass(frozen=True, eq=False)
class Leakage:
    """Images that are near-duplicates of training images.

    Attributes:
        searched: number of training images that were searched.
        duplicates: near-duplicates, at most one per image: identical images, then the most similar first.
        seconds: duration of the search.
        kept: bool `[N]`, marks images that are not near-duplicates.
    """

    searched: int
    duplicates: list[Duplicate]
    seconds: float
    kept: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ModelEvaluation:
    """Everything measured about a model on a split of N images.

    Attributes:
        reference: `name@version`.
        manifest: manifest of the model.
        data: the images.
        probabilities: float32 `[N, C]`, 0–1.
        logits: float32 `[N, C]`.
        figures: loss and confusion matrix, at the manifest's temperature.
        calibration: confidence against accuracy, at the manifest's temperature.
        uncalibrated: the same at temperature 1.
        abstains: bool `[N]`, whether the model abstains.
        bias: prediction bias of each class.
        slices: accuracy on slices, by image property.
        cost: cost of a prediction on this machine.
        robustness: accuracy on corrupted images; `None` if not requested.
        leakage: near-duplicates of training images; `None` if not requested, or without training images to search.
    """

    reference: str
    manifest: Manifest
    data: Selected
    probabilities: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    figures: Evaluation
    calibration: Calibration
    uncalibrated: Calibration
    abstains: npt.NDArray[np.bool_]
    bias: list[ClassBias]
    slices: dict[str, list[Slice]]
    cost: Cost
    robustness: Robustness | None
    leakage: Leakage | None

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Most probable class of each image, int64 `[N]`."""
        predicted: npt.NDArray[np.int64] = self.logits.argmax(axis=1)
        return predicted

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the prediction is the true class, bool `[N]`."""
        correct: npt.NDArray[np.bool_] = self.predicted == self.data.images.labels
        return correct


def score_here(
    predictor: Predictor, dataset: ImageDataset, corrupt_every: int | None, on_progress: OnProgress = lambda _: None
) -> Iterator[tuple[int, BlockScores]]:
    """Score all blocks in this process, in order; yield the number and the scores of each block. For the arguments see `score_block`."""
    for block in range(count_blocks(len(dataset))):
        yield block, score_block(predictor, dataset.images, block, corrupt_every, on_progress)


def corruption_stride(images: int, max_corrupted: int) -> int | None:
    """The smallest n for which every n-th of `images` is at most `max_corrupted` images; `None` if no image is to be corrupted."""
    return max(1, -(-images // max_corrupted)) if max_corrupted else None


def evaluate_model(
    predictor: Predictor,
    reference: str,
    data: Selected,
    scores: Iterable[tuple[int, BlockScores]],
    progress: Progress,
    *,
    look_for_leakage: bool = True,
) -> ModelEvaluation:
    """Collect the scores of all blocks, in any order, and compute everything else from them.

    Args:
        predictor: the model; cost and embeddings are measured in this process.
        reference: `name@version`.
        data: the images.
        scores: number and scores of each block, from `score_here` or `score_on_ray`.
        progress: progress display.
        look_for_leakage: search the training images for near-duplicates.
    """
    images = data.images
    blocks = collect_scores(scores)
    logits = np.concatenate([block.logits for block in blocks])
    correct: npt.NDArray[np.bool_] = logits.argmax(axis=1) == images.labels
    temperature = predictor.manifest.temperature
    probabilities = softmax(logits, temperature)
    figures = evaluate_logits(logits, images.labels, temperature)
    progress("measuring speed and memory", 0)
    cost = measure_cost(predictor)
    return ModelEvaluation(
        reference=reference,
        manifest=predictor.manifest,
        data=data,
        probabilities=probabilities,
        logits=logits,
        figures=figures,
        calibration=calibrate(probabilities, images.labels),
        uncalibrated=calibrate(softmax(logits), images.labels),
        abstains=np.concatenate([block.abstains for block in blocks]),
        bias=prediction_bias(figures.confusion),
        slices={name: slice_by(values, correct) for name, values in properties(images, data.root).items()},
        cost=cost,
        robustness=_robustness(images, correct, blocks),
        leakage=find_leakage(predictor, images, data.train, progress) if look_for_leakage and data.train is not None else None,
    )


def collect_scores(scores: Iterable[tuple[int, BlockScores]]) -> list[BlockScores]:
    """Collect the scores of all blocks, which may arrive in any order, and return them in order."""
    by_block = dict(scores)
    return [by_block[block] for block in sorted(by_block)]


def _robustness(images: ImageDataset, correct: npt.NDArray[np.bool_], blocks: list[BlockScores]) -> Robustness | None:
    rows = np.concatenate([number * BLOCK + block.rows for number, block in enumerate(blocks)])
    if not len(rows):
        return None
    corrupted = np.concatenate([block.corrupted for block in blocks], axis=2)
    assert corrupted.shape == (len(CORRUPTIONS), LEVELS, len(rows))  # noqa: S101
    return Robustness(len(rows), int(correct[rows].sum()), (corrupted == images.labels[rows]).sum(axis=2).astype(np.int64))


def find_leakage(predictor: Predictor, images: ImageDataset, train: ImageDataset, progress: Progress) -> Leakage:
    """Search the training images for near-duplicates of `images`."""
    started_s = time.perf_counter()
    on_embedded = progress("embedding", len(images) + len(train))
    embeddings = embed_all(predictor, images.images, on_embedded), embed_all(predictor, train.images, on_embedded)
    on_compared = progress("searching for duplicates", len(images))
    duplicates = find_duplicates(images.images, train.images, embeddings, on_compared)
    kept = np.ones(len(images), np.bool_)
    kept[[duplicate.query for duplicate in duplicates]] = False
    return Leakage(len(train), duplicates, time.perf_counter() - started_s, kept)


def without_duplicates(evaluation: ModelEvaluation) -> Evaluation | None:
    """Loss and confusion matrix without near-duplicates of training images; `None` if they were not searched."""
    if evaluation.leakage is None:
        return None
    kept = evaluation.leakage.kept
    return evaluate_logits(evaluation.logits[kept], evaluation.data.images.labels[kept], evaluation.manifest.temperature)


def most_confident_mistakes(evaluation: ModelEvaluation, count: int) -> npt.NDArray[np.int64]:
    """Rows of wrong predictions, most confident first, int64, at most `count`."""
    wrong = np.flatnonzero(~evaluation.correct)
    confidence = evaluation.probabilities[wrong].max(axis=1)
    return wrong[np.argsort(-confidence, kind="stable")[:count]]

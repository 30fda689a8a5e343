"""Figures of a finished training on its validation and test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.metrics.accuracy import Evaluation, Labels, Logits, evaluate_logits, is_uneven
from cifar_ray.metrics.label_sets import LabelSetFigures, count_labels, map_spread, mean_average_precision
from cifar_ray.metrics.trust import Figures, Trust
from cifar_ray.store.gallery import SplitPredictions
from cifar_ray.training.records.results import Confusion


@dataclass(frozen=True)
class HeldOutFigures:
    """Figures of a model.

    Attributes:
        metrics: as `FitResult.metrics`.
        val_confusion: as `EpochReport.val_confusion`.
        test_confusion: as `FitResult.test_confusion`.
        test_predictions: as `FitResult.test_predictions`.
    """

    metrics: dict[str, float]
    val_confusion: Confusion | None
    test_confusion: Confusion | None
    test_predictions: SplitPredictions | None


def judge(splits: TrainingSplits, outputs: Mapping[str, tuple[Logits, Logits]], trust: Trust) -> HeldOutFigures:
    """Compare logits with the labels of the validation and test images.

    Args:
        splits: the data set.
        outputs: logits `[N, C]` and features `[N, D]` of the splits `val` and `test`, if they exist.
        trust: fitted on images other than the test images.
    """
    train = splits.train
    uneven = train.labels.ndim == 1 and is_uneven(count_labels(train.labels, train.num_classes))
    metrics: dict[str, float] = {}
    val = test = judged = None
    if splits.val is not None:
        val = Trust.plain(splits.val.labels).evaluate(outputs["val"][0], splits.val.labels)
        metrics |= score_metrics("val", outputs["val"][0], splits.val.labels)
        metrics |= _over_classes("val", val) if uneven else {}
    if splits.test is not None:
        logits, features = outputs["test"]
        test = trust.evaluate(logits, splits.test.labels)
        metrics |= score_metrics("test", logits, splits.test.labels)
        metrics |= trust.metrics(logits, splits.test.labels, features)
        metrics |= _over_classes("test", test) if uneven else {}
        judged = SplitPredictions.of(logits, splits.test.labels, trust.temperature) if isinstance(test, Evaluation) else None
    return HeldOutFigures(metrics, plain(val), plain(test), judged)


def score_metrics(split: str, logits: Logits, labels: Labels) -> dict[str, float]:
    """Metrics by which models are compared: accuracy, or mAP and its standard error (`…_map_sd`), 0–1."""
    if labels.ndim == 1:
        return {f"{split}_accuracy": evaluate_logits(logits, labels).accuracy}
    return {f"{split}_map": mean_average_precision(logits, labels), f"{split}_map_sd": map_spread(logits, labels)}


def _over_classes(split: str, figures: Figures) -> dict[str, float]:
    """Metrics in which each class counts the same, for uneven classes."""
    if not isinstance(figures, Evaluation):
        return {}
    return {f"{split}_balanced_accuracy": figures.balanced_accuracy, f"{split}_macro_f1": figures.macro_f1}


def of_validation(figures: Figures | None) -> dict[str, Any]:
    """The fields of `EpochReport` that come from the validation images."""
    if isinstance(figures, LabelSetFigures):
        return {"val_loss": figures.loss, "val_accuracy": None, "val_map": figures.score}
    if figures is None:
        return {"val_loss": None, "val_accuracy": None}
    return {"val_loss": figures.loss, "val_accuracy": figures.accuracy, "val_confusion": plain(figures)}


def plain(figures: Figures | None) -> Confusion | None:
    """The confusion matrix as plain numbers; `None` with several labels per image."""
    return tuple(map(tuple, figures.confusion.tolist())) if isinstance(figures, Evaluation) else None

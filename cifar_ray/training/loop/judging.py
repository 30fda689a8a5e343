"""Figures of a finished training on its validation and test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.metrics.accuracy import Evaluation, Logits, evaluate_logits, is_uneven
from cifar_ray.metrics.trust import Trust
from cifar_ray.store.gallery import Judged
from cifar_ray.training.records.results import Confusion


@dataclass(frozen=True)
class Judgement:
    """Figures of a model.

    Attributes:
        metrics: as `FitResult.metrics`.
        val_confusion: as `EpochReport.val_confusion`.
        test_confusion: as `FitResult.test_confusion`.
        test_judged: as `FitResult.test_judged`.
    """

    metrics: dict[str, float]
    val_confusion: Confusion | None
    test_confusion: Confusion | None
    test_judged: Judged | None


def judge(splits: TrainingSplits, outputs: Mapping[str, tuple[Logits, Logits]], trust: Trust) -> Judgement:
    """Compare logits with the labels of the validation and test images.

    Args:
        splits: the data set.
        outputs: logits `[N, C]` and features `[N, D]` by split, `val` and `test` where they exist.
        trust: fitted on other images than the test images.
    """
    uneven = is_uneven(np.bincount(splits.train.labels, minlength=splits.train.num_classes))
    metrics: dict[str, float] = {}
    val = test = judged = None
    if splits.val is not None:
        val = evaluate_logits(outputs["val"][0], splits.val.labels)
        metrics["val_accuracy"] = val.accuracy
        metrics |= _over_classes("val", val) if uneven else {}
    if splits.test is not None:
        logits, features = outputs["test"]
        test = evaluate_logits(logits, splits.test.labels, trust.temperature)
        metrics["test_accuracy"] = test.accuracy
        metrics |= trust.metrics(logits, splits.test.labels, features)
        metrics |= _over_classes("test", test) if uneven else {}
        judged = Judged.of(logits, splits.test.labels, trust.temperature)
    return Judgement(metrics, plain(val), plain(test), judged)


def _over_classes(split: str, evaluation: Evaluation) -> dict[str, float]:
    """Metrics in which each class counts the same, for uneven classes."""
    return {f"{split}_balanced_accuracy": evaluation.balanced_accuracy, f"{split}_macro_f1": evaluation.macro_f1}


def plain(evaluation: Evaluation | None) -> Confusion | None:
    """The confusion matrix as plain numbers."""
    return None if evaluation is None else tuple(map(tuple, evaluation.confusion.tolist()))

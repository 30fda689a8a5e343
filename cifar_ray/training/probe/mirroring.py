"""Find out whether mirrored pictures look like another class, as left and right hands do."""

from __future__ import annotations

import math

import numpy as np

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.data.task_progress import StartTask
from cifar_ray.metrics.trust import Trust
from cifar_ray.training.probe.extraction import ComputeHere, Opener, extract_view
from cifar_ray.training.probe.head import assign_folds, fit_head
from cifar_ray.training.probe.linear_probe import Rows, open_backbone

_MAX_PICTURES = 1000
_LEAST_LOSS = 0.1  # smallest loss of accuracy or mAP that counts
_Z = 3.0  # standard errors


def mirroring_harms(config: TrainConfig, splits: TrainingSplits, progress: StartTask, open_view: Opener = ComputeHere) -> bool:
    """Whether mirroring clearly lowers the accuracy, or mAP, of a head that was fitted on unmirrored pictures.

    The head is fitted on half of up to 1,000 training pictures, and evaluated on the other half with and without mirroring. The loss
    must exceed 0.1 and three standard errors.
    """
    train = splits.train
    rows = np.arange(min(len(train), _MAX_PICTURES)) * len(train) // min(len(train), _MAX_PICTURES)
    labels = train.labels[rows]
    half = assign_folds(labels, np.arange(len(rows)), config.seed, folds=2)
    if len(np.unique(labels[half == 0], axis=0)) < 2:
        return False
    backbone, _ = open_backbone(config, train.image_size_px)
    chosen = Rows(train, rows)
    upright, mirrored = (extract_view(backbone, number, chosen, progress, open_view) for number in (0, 1))
    fitted, judged = half == 0, half == 1
    folds = assign_folds(labels[fitted], np.arange(int(fitted.sum())), config.seed, folds=2)
    head = fit_head(upright[fitted].copy(), labels[fitted], train.num_classes, folds).head
    before, after = (Trust.plain(labels).evaluate(head.logits(part[judged]), labels[judged]).score for part in (upright, mirrored))
    spread = math.sqrt(max(before * (1 - before), 0.25 / judged.sum()) * 2 / judged.sum())
    return before - after > max(_LEAST_LOSS, _Z * spread)

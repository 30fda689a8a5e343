"""Fits a kept model's temperature and abstain threshold, as training does for a new one."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cifar_ray.config import DatasetName
from cifar_ray.data import ImageDataset, load_splits
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.evaluation.scoring import BLOCK, device_here
from cifar_ray.evaluation.selection import DataChoice, relabel, select
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.accuracy import Logits
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Bundle


def calibrated(
    bundle: Bundle, dataset: DatasetName | None = None, data_dir: str | None = None, progress: StartTask = no_progress
) -> tuple[Bundle, Trust, dict[str, float]]:
    """The same weights with a temperature and a threshold fitted on validation images, and figures from test images.

    Args:
        bundle: stays as it is.
        dataset: other data than it was trained on.
        data_dir: where the data lie.
        progress: of the decoding.

    Returns:
        The bundle, not kept anywhere yet, what was fitted, and how that fits test images: `Trust.metrics`, empty where there are none.

    Raises:
        ConfigError: if it does not say what it was trained on, and nothing was chosen.
        DataError: if the data are missing, have no validation images, or other classes.
        BundleError: if it is damaged.
    """
    manifest = bundle.manifest
    data = select(manifest, DataChoice(dataset=dataset, data_dir=data_dir, split="val"), progress)
    test = load_splits(data.config).test
    predictor = Predictor(bundle, device_here(), engine="torch")
    trust = Trust.fit(_logits(predictor, data.images), data.images.labels)
    changes: dict[str, Any] = {
        "temperature": trust.temperature,
        "abstain_threshold": trust.abstain_threshold,
        "created_at": datetime.now(UTC),
    }
    figures: dict[str, float] = {}
    if test is not None:
        figures = trust.metrics(_logits(predictor, test), relabel(test, manifest.class_names, data.name).labels)
        if manifest.test_fingerprint in ("", test.fingerprint):  # else they belong to other images than the rest of its figures
            changes["metrics"] = manifest.metrics | figures
    return dataclasses.replace(bundle, manifest=manifest.model_copy(update=changes)), trust, figures


def _logits(predictor: Predictor, dataset: ImageDataset) -> Logits:
    images = dataset.images
    return np.concatenate([predictor.predict(images[start : start + BLOCK]).logits for start in range(0, len(images), BLOCK)])

"""Create a new version of a saved model: the same weights with a fitted calibration, or with a gallery of its mistakes."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cifar_ray.config import DatasetName
from cifar_ray.config.data_choice import DataChoice
from cifar_ray.data import ImageDataset, load_splits
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.evaluation.model_evaluation import ModelEvaluation
from cifar_ray.evaluation.scoring import BLOCK, device_here
from cifar_ray.evaluation.selection import relabel, select
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.accuracy import Logits
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Bundle
from cifar_ray.store.gallery import GALLERY_FILE, SplitPredictions, encode_gallery
from cifar_ray.store.trust_file import read_trust, with_trust

_SAME = 1e-3


def calibrated(
    bundle: Bundle,
    dataset: DatasetName | None = None,
    data_dir: str | None = None,
    progress: StartTask = no_progress,
    min_precision: float | None = None,
) -> tuple[Bundle, Trust, dict[str, float]]:
    """The same weights with calibration, abstain threshold and label thresholds fitted on validation images.

    Args:
        bundle: the saved model; it is not changed.
        dataset: the data set; `None` for the training data of the model.
        data_dir: folder or table of the data.
        progress: receives the progress of decoding.
        min_precision: for several labels per picture, see `fit_rules`; `None` for the value of the training.

    Returns:
        The new bundle, not saved yet; the fitted values; and `Trust.metrics` on the test images, empty without a test split.

    Raises:
        ConfigError: if the bundle does not name its training data and no data were given.
        DataError: if the data are missing, have no validation split, or have classes that the model lacks.
        BundleError: if the bundle is damaged.
    """
    manifest = bundle.manifest
    data = select(manifest, DataChoice(dataset=dataset, data_dir=data_dir, split="val"), progress)
    test = load_splits(data.config).test
    predictor = Predictor(bundle, device_here(), engine="torch")
    logits, features = _outputs(predictor, data.images)
    min_precision = manifest.train_config.get("min_precision") if min_precision is None else min_precision
    trust = Trust.fit(logits, data.images.labels, features, data.images.bursts, min_precision)
    changes: dict[str, Any] = {"created_at": datetime.now(UTC)}
    metrics: dict[str, float] = {}
    if test is not None:
        logits, features = _outputs(predictor, test)
        metrics = trust.metrics(logits, relabel(test, manifest.class_names, data.name).labels, features)
        if manifest.test_fingerprint in ("", test.fingerprint):  # all metrics in a manifest are from the same test images
            changes["metrics"] = manifest.metrics | metrics
    return with_trust(dataclasses.replace(bundle, manifest=manifest.model_copy(update=changes)), trust), trust, metrics


def same_trust(one: Bundle, other: Bundle) -> bool:
    """Whether two models have the same calibration and rules, up to rounding, which depends on the number of threads."""
    first, second = read_trust(one), read_trust(other)
    pairs = [(first.temperature, second.temperature), (first.abstain_threshold, second.abstain_threshold)]
    if (first.familiarity is None) != (second.familiarity is None):
        return False
    if first.rules is not None and second.rules is not None:
        one_rules, other_rules = (np.array([rules.thresholds, rules.slopes, rules.offsets]) for rules in (first.rules, second.rules))
        if not np.allclose(one_rules, other_rules, rtol=_SAME, atol=_SAME):
            return False
    if first.familiarity is not None and second.familiarity is not None:
        pairs.append((first.familiarity.threshold, second.familiarity.threshold))
    return all(a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=_SAME)) for a, b in pairs)


def with_gallery(bundle: Bundle, evaluation: ModelEvaluation) -> Bundle:
    """The same model with its confusion matrix and mistakes attached, as training attaches them; not saved yet.

    Args:
        bundle: the saved model; it is not changed.
        evaluation: evaluation of this model.
    """
    images = evaluation.data.images
    judged = SplitPredictions.of(evaluation.logits, images.labels, bundle.manifest.temperature)
    gallery = encode_gallery(judged, images.images, images.class_names, images.name_of, evaluation.data.split)
    manifest = bundle.manifest.model_copy(update={"created_at": datetime.now(UTC)})
    return dataclasses.replace(bundle, manifest=manifest, attachments={**bundle.attachments, GALLERY_FILE: gallery})


def _outputs(predictor: Predictor, dataset: ImageDataset) -> tuple[Logits, Logits]:
    """Logits, float32 `[N, C]`, and features, float32 `[N, D]`, of all images."""
    images = dataset.images
    predictions = [predictor.predict(images[start : start + BLOCK]) for start in range(0, len(images), BLOCK)]
    return np.concatenate([one.logits for one in predictions]), np.concatenate([one.features for one in predictions])

"""Train a probe: compute features of a pretrained network, then fit a linear head; there are no training steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.config import TrainConfig
from cifar_ray.data.batches.loader import Normalization
from cifar_ray.data.statistics import training_weights
from cifar_ray.data.streamed import StreamedImages, TrainingImages, TrainingSplits
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import TrainingError, advising_on_memory
from cifar_ray.metrics.familiarity import draw_rows
from cifar_ray.metrics.trust import Trust
from cifar_ray.models import create_model
from cifar_ray.models.stages import head_name
from cifar_ray.store import Architecture, PretrainedOrigin
from cifar_ray.training.loop.judging import judge, of_validation, score_metrics
from cifar_ray.training.loop.losses import balanced_weights, positive_weights
from cifar_ray.training.probe.extraction import Backbone, ComputeHere, Floats, Opener, extract
from cifar_ray.training.probe.head import FOLDS, FittedHead, LinearHead, assign_folds, fit_head
from cifar_ray.training.records.results import EpochReport, FitResult, Weights
from cifar_ray.training.weights.pretrained import load_pretrained

_ANY = 2  # number of classes of a head that is discarded
_MAX_FITTED = 5000  # maximum number of pictures for the familiarity, because their features are copied


@dataclass(frozen=True, eq=False)
class Probe:
    """A trained probe.

    Attributes:
        result: the same figures as from a training with steps.
        report: the figures as a report of one epoch.
        weights: state dict of the network with its head, on the CPU.
        fitted: the head with its cross-validation.
        network: the network itself.
    """

    result: FitResult
    report: EpochReport
    weights: Weights
    fitted: FittedHead
    network: nn.Module


@dataclass(frozen=True, eq=False)
class Rows:
    """Some images of a split, in memory or in files.

    Attributes:
        images: the split.
        chosen: int64 `[n]`, rows of the chosen images; `None` for all.
    """

    images: TrainingImages
    chosen: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images) if self.chosen is None else len(self.chosen)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Images, uint8 `[n, S, S, 3]`; `rows` count the chosen images."""
        rows = rows if self.chosen is None else self.chosen[rows]
        if isinstance(self.images, StreamedImages):
            return self.images.pictures.read(rows)
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        return self.images.images[span] if len(rows) == span.stop - span.start else self.images.images[rows]


def open_backbone(config: TrainConfig, image_size_px: int, mirror: bool = True) -> tuple[Backbone, PretrainedOrigin]:
    """The pretrained network of a config without its head, for images of `image_size_px`, and the origin of its weights.

    Raises:
        ConfigError, DataError: see `create_model` and `load_pretrained`.
    """
    network = create_model(config.model, _ANY, image_size_px)
    found = load_pretrained(network, config.model, config.pretrained)
    return Backbone.of(network, config.model, image_size_px, found.mean, found.std, mirror), found.origin


def train_probe(
    config: TrainConfig,
    splits: TrainingSplits,
    progress: StartTask = no_progress,
    *,
    mirror: bool = True,
    held_out_parts: bool = True,
    open_view: Opener = ComputeHere,
) -> Probe:
    """Train a probe on the training images, and evaluate it on the validation and test images.

    Temperature and abstain threshold come from cross-validation within the training images, so the validation images are used only to
    measure the probe.

    Args:
        config: model, pretrained weights, views, class weights and seed.
        splits: the data set.
        progress: receives the progress.
        mirror: whether views may be mirrored.
        held_out_parts: whether to evaluate on the validation and test images; if not, all figures come from cross-validation.
        open_view: creates the `Computing` that computes the features.

    Raises:
        ConfigError, DataError: see `create_model` and `load_pretrained`.
        TrainingError, ResourceError: if there is too little memory.
    """
    with advising_on_memory("pass a smaller --image-size, or free memory", TrainingError):
        return _train_probe(config, splits, progress, mirror, held_out_parts, open_view)


def _train_probe(
    config: TrainConfig, splits: TrainingSplits, progress: StartTask, mirror: bool, held_out_parts: bool, open_view: Opener
) -> Probe:
    started = time.perf_counter()
    train = splits.train
    size, classes = train.image_size_px, train.num_classes
    backbone, origin = open_backbone(config, size, mirror)
    parts = {name: Rows(part) for name, part in splits if held_out_parts or name == "train"}
    features = extract(backbone, config.views, parts, progress, open_view)
    computed_s = time.perf_counter() - started
    fitted = _fit(config, train, features["train"], progress)
    outputs = {name: (fitted.head.logits(features[name]), features[name]) for name in parts if name != "train"}
    trust = _fit_trust(fitted, train, features["train"], config.min_precision)
    judged = judge(splits, outputs, trust) if held_out_parts else None
    metrics = score_metrics("cv", fitted.held_out, train.labels[fitted.rows]) | (judged.metrics if judged else {})
    arguments: dict[str, Any] = {"num_classes": classes, "image_size": size} | (
        {"views": config.views, "mirror_views": mirror} if config.views > 1 else {}
    )
    network = create_model(config.model, **arguments)
    weights = _with_head(backbone.network, network, fitted.head)
    seconds = time.perf_counter() - started
    val = Trust.plain(train.labels).evaluate(outputs["val"][0], splits.val.labels) if splits.val is not None and "val" in outputs else None
    report = EpochReport(
        epoch=1,
        train_loss=fitted.loss,
        train_accuracy=fitted.score if train.labels.ndim == 1 else None,
        learning_rate=0.0,
        seconds=seconds,
        images_per_s=config.views * sum(len(part) for part in parts.values()) / computed_s,
        improved=True,
        **of_validation(val),
    )
    result = FitResult(
        best_epoch=1,
        normalization=Normalization(backbone.mean, backbone.std, torch.float32),
        metrics=metrics,
        precision="fp32",
        train_seconds=seconds,
        architecture=Architecture(name=config.model, arguments=arguments),
        trust=trust,
        test_confusion=judged.test_confusion if judged else None,
        test_predictions=judged.test_predictions if judged else None,
        pretrained=origin,
    )
    return Probe(result, report, weights, fitted, network)


def _groups(train: TrainingImages) -> npt.NDArray[np.int64]:
    return np.arange(len(train)) if train.bursts is None else train.bursts


def _fit_trust(fitted: FittedHead, train: TrainingImages, standardised: Floats, min_precision: float | None) -> Trust:
    """Fit on the training images: the backbone was not trained on them, so their features are as good as those of other pictures."""
    trust = Trust.fit(fitted.held_out, train.labels[fitted.rows], min_precision=min_precision)
    sample = draw_rows(len(fitted.rows), _MAX_FITTED)
    rows = fitted.rows[sample]
    features = (standardised[rows] * fitted.std + fitted.mean).astype(np.float32)
    return trust.with_familiarity(fitted.held_out[sample], features, _groups(train)[rows])


def _fit(config: TrainConfig, train: TrainingImages, features: Floats, progress: StartTask) -> FittedHead:
    groups = _groups(train)
    weights = training_weights(train.weights)
    if train.labels.ndim == 1 and (config.class_weights == "balanced" or config.sampling == "balanced"):
        balanced = balanced_weights(train.labels, train.num_classes)[train.labels].astype(np.float32)
        weights = balanced if weights is None else balanced * weights
    of_positives = None
    if train.labels.ndim == 2 and config.class_weights == "balanced":
        of_positives = positive_weights(train.labels).astype(np.float32)
    on_fitted = progress("fitting the head", (FOLDS + 1) * len(train.labels))  # each fit goes through all images
    folds = assign_folds(train.labels, groups, config.seed)
    return fit_head(
        features, train.labels, train.num_classes, folds, weights, lambda fits: on_fitted(fits * len(train.labels)), of_positives
    )


def _with_head(body: nn.Module, network: nn.Module, head: LinearHead) -> dict[str, Tensor]:
    """Put the body's weights and the head into a network; returns its state dict."""
    name = head_name(network)
    prefix = "network." if name.startswith("network.") else ""
    weights = {f"{prefix}{key}": tensor.detach().cpu() for key, tensor in body.state_dict().items()}
    weights |= {f"{name}.weight": torch.from_numpy(head.weight), f"{name}.bias": torch.from_numpy(head.bias)}
    network.load_state_dict(weights)
    return network.state_dict()

"""Save the model of a finished run to the store."""

from __future__ import annotations

import logging
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import BundleError, CifarRayError
from cifar_ray.metrics.score import Score
from cifar_ray.store.bundle import MANIFEST_FILE, Bundle, decode_manifest, encode
from cifar_ray.store.gallery import GALLERY_FILE, count_pictures, encode_gallery
from cifar_ray.store.locate import load_model
from cifar_ray.store.manifest import Manifest
from cifar_ray.store.promotion import promote_new
from cifar_ray.store.registry import ModelStore
from cifar_ray.store.trust_file import encode_familiarity
from cifar_ray.training.records.results import SavedModel, TrainedRun

_logger = logging.getLogger(__name__)
_LIBRARIES = ("cifar-ray", "torch", "torchvision", "ray", "numpy", "timm", "pillow")


def save_model(run: TrainedRun, config: TrainConfig, splits: TrainingSplits, resumed: bool = False) -> SavedModel:
    """Save the best weights of a run as a new version in the model store, and promote the version if it is good enough.

    Args:
        run: the finished run.
        config: config of the run.
        splits: data set of the run.
        resumed: whether an earlier process may have saved the model before it was killed; if it did, its version is reused.

    Raises:
        StoreError: if the store cannot be written.
    """
    store, name = ModelStore(config.storage), config.save_as or splits.name
    manifest = describe(run, config, splits)
    found = _find(store, name, manifest, run) if resumed else None
    attachments = encode_familiarity(run.result.trust) | _gallery(run, splits, config.gallery)
    bundle = found or store.save(name, manifest, run.weights, attachments)
    promoted, reason = promote_new(store, bundle, config.promote)
    pictures = count_pictures(bundle.attachments[GALLERY_FILE]) if GALLERY_FILE in bundle.attachments else 0
    return SavedModel(bundle, promoted, reason, pictures)


def _find(store: ModelStore, name: str, manifest: Manifest, run: TrainedRun) -> Bundle | None:
    """The version that an earlier process of this run has saved, found by run name and weights; `None` if there is none."""
    if name not in store.names():
        return None
    signed = decode_manifest(encode(manifest, run.weights, {})[MANIFEST_FILE], name)
    for number in reversed(store.versions(name)):
        with suppress(BundleError):
            found = store.manifest(f"{name}@{number}")
            if found.weights_sha256 == signed.weights_sha256 and found.train_config.get("name") == run.name:
                return store.load(f"{name}@{number}")
    return None


def _gallery(run: TrainedRun, splits: TrainingSplits, limit: int) -> dict[str, bytes]:
    """The model's mistakes, at most `limit` of them with their pictures, for the server's page; empty without test images.

    An error in the gallery is logged, and the model is saved without it.
    """
    test, judged = splits.test, run.result.test_predictions
    if test is None or judged is None:
        return {}
    try:
        return {GALLERY_FILE: encode_gallery(judged, test.images, test.class_names, test.name_of, "test", limit)}
    except Exception as error:
        _logger.warning("the model is saved without its gallery: %s: %s", type(error).__name__, error)
        return {}


def _descriptions(config: TrainConfig, splits: TrainingSplits) -> dict[str, str]:
    """Descriptions of the classes: those of the data, else those of the model that training started from, if it has the same classes."""
    if splits.class_descriptions or config.start is None:
        return dict(splits.class_descriptions)
    with suppress(CifarRayError):  # deleted during training
        parent = load_model(config.start.model, config.storage).manifest
        if set(parent.class_names) == set(splits.train.class_names):
            return parent.class_descriptions
    return {}


def describe(run: TrainedRun, config: TrainConfig, splits: TrainingSplits) -> Manifest:
    """Create the manifest for a run's best weights."""
    train = splits.train
    return Manifest(
        architecture=run.result.architecture,
        class_names=train.class_names,
        class_descriptions=_descriptions(config, splits),
        task="single-label" if train.labels.ndim == 1 else "multi-label",
        label_rules=run.result.trust.rules,
        image_size_px=train.image_size_px,
        channel_mean=run.result.normalization.mean,
        channel_std=run.result.normalization.std,
        resize_policy=config.square_policy,
        temperature=run.result.trust.temperature,
        abstain_threshold=run.result.trust.abstain_threshold,
        metrics=run.result.metrics,
        image_counts={name: len(part) for name, part in splits} | ({"cv": len(train)} if Score.find(run.result.metrics, "cv") else {}),
        dataset_name=splits.name,
        dataset_fingerprint=splits.dataset_fingerprint,
        test_fingerprint=splits.test_fingerprint,
        parent=config.start.model if config.start else None,
        parent_weights_sha256=run.result.parent_weights_sha256,
        pretrained=run.result.pretrained,
        train_config=config.model_dump(mode="json"),
        library_versions={"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        created_at=datetime.now(UTC),
    )

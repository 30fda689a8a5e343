"""The int8 form of a network, by NNCF's post-training quantization; it is saved with the weights if the loss of accuracy is small enough.

Quantization ranges come from calibration pictures, per channel for weights and per tensor for activations (Jacob et al. 2018,
arXiv 1712.05877).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import DatasetSplits, load_splits
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.task_progress import StartTask, no_progress
from cifar_ray.errors import ConfigError, MissingDependencyError
from cifar_ray.inference.engines.choice import deviation
from cifar_ray.inference.engines.conversion import convert
from cifar_ray.inference.engines.engine import Engine, TorchEngine
from cifar_ray.inference.engines.features import with_features
from cifar_ray.inference.engines.openvino_engine import INT8_FILES, OpenVinoEngine, import_openvino
from cifar_ray.inference.engines.synthetic_pictures import gradients
from cifar_ray.inference.predictor import Predictor
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Bundle, ModelStore, Quantization

Pixels = npt.NDArray[np.uint8]

_BATCH = 250


def quantize_stored(
    store: ModelStore,
    reference: str,
    *,
    data_dir: str | None,
    calibration_images: int,
    seed: int,
    tolerance: float,
    progress: StartTask = no_progress,
) -> tuple[Bundle, Bundle]:
    """Save a new version of a model with the int8 form of its network.

    Args:
        store: store of the model.
        reference: `name`, `name@3` or `name@production`.
        data_dir: present folder of the training images; `None` if it is the same as during training.
        calibration_images: number of training images that determine the quantization ranges.
        seed: seed for the choice of these images.
        tolerance: maximum loss of accuracy, 0–1.
        progress: receives the progress.

    Returns:
        The unchanged model, and the new version.

    Raises:
        ConfigError: if the images are not those of the training, or there are no validation and test images; see also `with_int8`.
        DataError: if the images are missing.
        MissingDependencyError: if NNCF or OpenVINO is not installed.
        StoreError: if there is no such model.
    """
    bundle = store.load(reference)
    given = {"with_reviews": False} | ({"data_dir": data_dir} if data_dir else {})
    splits = load_splits(parse_config(TrainConfig, bundle.manifest.train_config | given), progress)
    if not bundle.manifest.was_trained_on(splits.fingerprint, splits.test_fingerprint):
        raise ConfigError(
            f"the images of {splits.name} differ from the training images of {bundle.reference}; pass their folder with --data-dir"
        )
    held_out = {name: part for name, part in splits if name != "train"}
    if not held_out:
        raise ConfigError(f"{splits.name} has no validation and no test images for measuring the accuracy; add a val or test folder")
    made = with_int8(bundle, _choose(splits, calibration_images, seed), held_out, tolerance, progress)
    return bundle, store.save(bundle.name, made.manifest, made.weights, made.attachments)


def _choose(splits: DatasetSplits, count: int, seed: int) -> Pixels:
    """Draw random training images, uint8 `[K, S, S, 3]`, in the order of the data set."""
    total = len(splits.train)
    rows = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    return splits.train.images[rows]


def with_int8(
    bundle: Bundle, calibration: Pixels, held_out: dict[str, ImageDataset], tolerance: float, progress: StartTask = no_progress
) -> Bundle:
    """Add an int8 form of the network to a bundle, if it is accurate enough.

    Args:
        bundle: the bundle; it is not changed.
        calibration: uint8 `[K, S, S, 3]`, a few hundred training images for the quantization ranges.
        held_out: validation and test splits by name; the accuracy is over both together, because one may be too small.
        tolerance: maximum loss of accuracy, 0–1.
        progress: receives the progress.

    Returns:
        The bundle with `INT8_FILES` attached and `manifest.quantization` set; not saved yet.

    Raises:
        MissingDependencyError: if NNCF or OpenVINO is not installed.
        ConfigError: if the network cannot be quantized, or loses more than `tolerance`.
        BundleError: if the bundle is damaged.
    """
    progress("quantizing", 0)
    predictor = Predictor(bundle, precision="fp32", engine="torch")
    exact = TorchEngine(predictor.network, predictor.manifest, predictor.precision)
    files = _quantize(exact, calibration)
    int8 = OpenVinoEngine(exact, files)
    count = sum(len(part) for part in held_out.values())
    reference_accuracy, accuracy = (
        held_out_score(engine, held_out, progress(f"evaluating {name}", count)) for name, engine in (("fp32", exact), ("int8", int8))
    )
    if reference_accuracy - accuracy > tolerance:
        name = "accuracy" if bundle.manifest.task == "single-label" else "mAP"
        raise ConfigError(
            f"int8 {name} {100 * accuracy:.2f} % is more than {100 * tolerance:g} points below the fp32 {name} "
            f"{100 * reference_accuracy:.2f} %; not saved. Pass --tolerance-points to allow a larger loss"
        )
    record = Quantization(
        calibration_images=len(calibration),
        measured_on=" and ".join(f"{len(part):,} {name}" for name, part in held_out.items()) + " images",
        accuracy=accuracy,
        reference_accuracy=reference_accuracy,
        tolerance=tolerance,
        deviation=deviation(int8, exact, gradients(bundle.manifest.image_size_px)),
    )
    manifest = bundle.manifest.model_copy(update={"quantization": record, "created_at": datetime.now(UTC)})
    return dataclasses.replace(bundle, manifest=manifest, attachments={**bundle.attachments, **files})


def held_out_score(engine: Engine, held_out: dict[str, ImageDataset], advance: Callable[[int], None] = lambda _: None) -> float:
    """Accuracy, or mAP for several labels per image, on all held-out images together, 0–1."""
    logits = []
    for part in held_out.values():
        for first in range(0, len(part), _BATCH):
            logits.append(engine.logits(part.images[first : first + _BATCH]))
            advance(len(logits[-1]))
    labels = np.concatenate([part.labels for part in held_out.values()])
    return Trust.plain(labels).evaluate(np.concatenate(logits), labels).score


def _quantize(engine: TorchEngine, images: Pixels) -> dict[str, bytes]:
    openvino, nncf = import_openvino(), _import_nncf()
    # batches of one picture, because NNCF updates the ranges once per batch
    calibration = nncf.Dataset(np.split(images, len(images)))
    try:
        exact = convert(with_features(engine.network), engine.manifest)
        model = nncf.quantize(exact, calibration, preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(images))
    except Exception as failure:  # tracing, converting and quantizing raise many exceptions
        raise ConfigError(f"this network cannot be quantized: {' '.join(str(failure).split())[:200]}") from None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, file) for file in INT8_FILES]
        openvino.save_model(model, files[0], compress_to_fp16=False)
        return {file.name: file.read_bytes() for file in files}


def _import_nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # NNCF would send usage reports
    try:
        import nncf
    except ImportError:
        raise MissingDependencyError("nncf is not installed: pip install 'cifar-ray[quantize]'") from None
    nncf.set_log_level(logging.ERROR)
    return nncf

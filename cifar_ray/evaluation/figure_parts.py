"""Parts that the figures of every evaluation have: data, cost, near-duplicates."""

from __future__ import annotations

import math
from typing import Any

from cifar_ray.evaluation.measures.leakage import describe_duplicate
from cifar_ray.evaluation.model_evaluation import Leakage
from cifar_ray.evaluation.selection import Selected
from cifar_ray.metrics.calibration import Calibration
from cifar_ray.store import Manifest

FORMAT_VERSION = 1


def describe_subject(reference: str, manifest: Manifest, data: Selected) -> dict[str, Any]:
    """Figures that identify the model and the images."""
    return {
        "format_version": FORMAT_VERSION,
        "model": reference,
        "weights_sha256": manifest.weights_sha256,
        "data": {
            "name": data.name,
            "split": data.split,
            "images": len(data.images),
            "fingerprint": data.images.fingerprint,
            "the_images_that_training_reported_on": data.as_trained,
        },
    }


def describe_duplicates(leakage: Leakage, data: Selected) -> dict[str, Any]:
    """Number and pairs of images that are near-duplicates of training images; `data.train` must be set."""
    assert data.train is not None  # noqa: S101
    return {
        "training_images_searched": leakage.searched,
        "duplicates": len(leakage.duplicates),
        "share": len(leakage.duplicates) / len(data.images),
        "seconds": leakage.seconds,
        "pairs": [describe_duplicate(one, data.images, data.train) for one in leakage.duplicates],
    }


def describe_calibration(calibration: Calibration, uncalibrated: Calibration) -> dict[str, float]:
    """Calibration error and overconfidence, and the error without calibration."""
    return {
        "expected_calibration_error": calibration.error,
        "overconfidence": calibration.overconfidence,
        "expected_calibration_error_without_it": uncalibrated.error,
    }


def images_row(figures: dict[str, Any]) -> tuple[str, str]:
    """Row of a summary table: the images."""
    data = figures["data"]
    texts = {True: " (the test split of its training)", False: f" (not the {data['split']} split of its training)", None: ""}
    known = texts[data["the_images_that_training_reported_on"]]
    which = "images of all splits" if data["split"] == "all" else f"{data['split']} images"
    return "images", f"{data['images']:,} {which} of {data['name']}{known}"


def cost_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a summary table: cost and speed."""
    cost = figures["cost"]
    return [
        ("cost", f"{cost['parameters']:,} parameters, {cost['flops'] / 1e6:,.1f} MFLOPs per image, {cost['weight_bytes'] / 1e6:.1f} MB"),
        (
            "speed",
            f"{cost['latency_ms']:.2f} ms for one image, {cost['images_per_s']:,.0f} images/s in batches "
            f"({cost['engine']}, {cost['precision']}, {cost['threads']} thread{'s' * (cost['threads'] != 1)})",
        ),
    ]


def percent(value: float | None) -> str:
    """Format a fraction, 0–1, as a percentage; a dash for `None`."""
    return "–" if value is None else f"{100 * value:.2f} %"


def without_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not have, with `None`, also in nested dictionaries and lists; tuples become lists."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

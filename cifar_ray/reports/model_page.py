"""Parts that all evaluation reports share, for one class or several labels per picture: files, heatmaps, near-duplicates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_ray.evaluation.figures import AnyEvaluation
from cifar_ray.evaluation.model_evaluation import Leakage
from cifar_ray.evaluation.selection import Selected
from cifar_ray.inference.overlay import overlay
from cifar_ray.reports.contact_sheet import Cell, sheet
from cifar_ray.reports.renderer import Picture, Section, Table, render

_SHOWN_DUPLICATES = 40
_HEATMAP_PX = 96


def evaluation_files(figures: dict[str, Any], pictures: Mapping[str, Picture], page: bytes) -> dict[str, bytes]:
    """`evaluation.json`, the pictures, and `report.html`, by file name."""
    files = {f"{name}.png": picture.png for name, picture in pictures.items()}
    return {"evaluation.json": json.dumps(figures, indent=1, ensure_ascii=False).encode(), **files, "report.html": page}


def render_about(evaluation: AnyEvaluation, sections: Sequence[Section]) -> bytes:
    """Render the page, with the model and the data in its title and first line."""
    data, manifest = evaluation.data, evaluation.manifest
    trained = f"{manifest.architecture.name}, trained on {manifest.dataset_name}"
    if manifest.task == "multi-label":
        trained += ", several labels per image"
    return render(f"{evaluation.reference} on {data.name} ({data.split})", f"{trained}; weights {manifest.weights_sha256[:12]}", sections)


def heat_sheet(images: npt.NDArray[np.uint8], heatmaps: npt.NDArray[np.float32], captions: Sequence[Sequence[str]]) -> bytes:
    """Each image beside its heatmap, as PNG.

    Args:
        images: uint8 `[N, S, S, 3]`.
        heatmaps: float32 `[N, S, S]`, 0–1.
        captions: lines below each image.
    """
    return sheet(
        [
            Cell((image, overlay(image, heatmap, side_px=_HEATMAP_PX)), caption)
            for image, heatmap, caption in zip(images, heatmaps, captions, strict=True)
        ],
        columns=5,
    )


def duplicates_picture(leakage: Leakage | None, data: Selected) -> dict[str, Picture]:
    """The most similar pairs side by side, under the name `duplicates`; empty if there are none."""
    images, train = data.images, data.train
    if leakage is None or train is None or not leakage.duplicates:
        return {}
    png = sheet(
        [
            Cell(
                (images.images[one.query], train.images[one.reference]),
                (f"{one.similarity:.2f}{' mirrored' if one.mirrored else ''}", images.name_of(one.query), train.name_of(one.reference)),
            )
            for one in leakage.duplicates[:_SHOWN_DUPLICATES]
        ],
        columns=5,
    )
    return {"duplicates": Picture(png, f"Left: image. Right: training image. Most similar first, at most {_SHOWN_DUPLICATES}.")}


def leakage_sections(figures: dict[str, Any], shown: Mapping[str, Sequence[Picture]]) -> list[Section]:
    """The section on near-duplicates of training images, with all pairs; empty if they were not searched."""
    if figures["leakage"] is None:
        return []
    pairs = figures["leakage"]["pairs"]
    rows = [(one["image"], one["other"], one["class"], one["other_class"], f"{one['similarity']:.3f}") for one in pairs]
    table = [Table(("image", "training image", "class", "its class", "similarity"), rows)] if rows else []
    pictures = shown.get("duplicates", ["No image is a near-duplicate of a training image."])
    return [Section("Leakage: near-duplicates of training images", [*pictures, *table])]
